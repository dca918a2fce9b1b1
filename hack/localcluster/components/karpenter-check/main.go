// Command karpenter-check says why Karpenter would make no node for pods.
//
// It reads pods from the standard input. For each it writes one line, a JSON list of what Karpenter
// has against its required node affinity. A pod with an entry is left out of provisioning, for
// Karpenter's provisioner asks the same of every requirement of every term.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	corev1 "k8s.io/api/core/v1"
	karpenter "sigs.k8s.io/karpenter/pkg/apis/v1"
)

func refusals(pod *corev1.Pod) []string {
	found := []string{}
	affinity := pod.Spec.Affinity
	if affinity == nil || affinity.NodeAffinity == nil {
		return found
	}
	required := affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	if required == nil {
		return found
	}
	for _, term := range required.NodeSelectorTerms {
		if len(term.MatchFields) > 0 {
			found = append(found, "matchFields")
		}
		for _, requirement := range term.MatchExpressions {
			err := karpenter.ValidateRequirement(context.Background(), karpenter.NodeSelectorRequirementWithMinValues{
				Key: requirement.Key, Operator: requirement.Operator, Values: requirement.Values,
			})
			if err != nil {
				found = append(found, err.Error())
			}
		}
	}
	return found
}

func main() {
	pods := json.NewDecoder(os.Stdin)
	for {
		var pod corev1.Pod
		if err := pods.Decode(&pod); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := json.NewEncoder(os.Stdout).Encode(refusals(&pod)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
