// Command scheduler-check says whether kube-scheduler's own code lets pods onto nodes.
//
// Each object on the standard input has a pod and a node; each line of the output is true or false.
// What is asked are the node selector, the required node affinity, taints and cordons, as the
// scheduler's plugins NodeAffinity, TaintToleration and NodeUnschedulable ask them.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	corev1 "k8s.io/api/core/v1"
	helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

type question struct {
	Pod  corev1.Pod  `json:"pod"`
	Node corev1.Node `json:"node"`
}

func admits(pod *corev1.Pod, node *corev1.Node) bool {
	matches, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node)
	if err != nil || !matches {
		return false
	}
	log := klog.Background()
	tolerations := pod.Spec.Tolerations
	forbids := func(taint *corev1.Taint) bool {
		return taint.Effect == corev1.TaintEffectNoSchedule || taint.Effect == corev1.TaintEffectNoExecute
	}
	if _, found := helpers.FindMatchingUntoleratedTaint(log, node.Spec.Taints, tolerations, forbids, false); found {
		return false
	}
	cordon := corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
	return !node.Spec.Unschedulable || helpers.TolerationsTolerateTaint(log, tolerations, &cordon, false)
}

func main() {
	questions := json.NewDecoder(bufio.NewReader(os.Stdin))
	answers := bufio.NewWriter(os.Stdout)
	defer answers.Flush()
	for {
		var asked question
		if err := questions.Decode(&asked); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			answers.Flush()
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintln(answers, admits(&asked.Pod, &asked.Node))
	}
}
