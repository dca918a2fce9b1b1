{{- define "sandboxpool.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sandboxpool.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "sandboxpool.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The name of cluster-scoped objects. Releases with watchNamespaces may have the same name. */}}
{{- define "sandboxpool.clusterName" -}}
{{- $fullname := include "sandboxpool.fullname" . -}}
{{- if .Values.watchNamespaces -}}
{{- printf "%s.%s" $fullname .Release.Namespace -}}
{{- else -}}
{{- $fullname -}}
{{- end -}}
{{- end -}}

{{/* The name of the operator's Lease, and the beginning of the names of its records. */}}
{{- define "sandboxpool.leaseName" -}}
{{- if .Values.watchNamespaces -}}
{{- include "sandboxpool.fullname" . -}}
{{- else -}}
sandboxpool
{{- end -}}
{{- end -}}

{{/* Whether the operator writes exclusion labels on nodes: "true" or nothing. */}}
{{- define "sandboxpool.exclusionLabels" -}}
{{- if and .Values.sandboxRuntimes.manage .Values.nodes.exclusionLabels -}}
true
{{- end -}}
{{- end -}}

{{/* Whether the operator publishes on nodes: "true" or nothing. */}}
{{- define "sandboxpool.publishOnNodes" -}}
{{- if .Values.publishOnNodes -}}
{{- if not .Values.sandboxRuntimes.manage -}}
{{- fail "publishOnNodes: only the release that manages SandboxRuntimes may publish on nodes: set it there, or set sandboxRuntimes.manage to true here" -}}
{{- end -}}
true
{{- end -}}
{{- end -}}

{{/* The name of the metrics Service. */}}
{{- define "sandboxpool.metricsName" -}}
{{- printf "%s-metrics" (include "sandboxpool.fullname" . | trunc 55 | trimSuffix "-") -}}
{{- end -}}

{{/* The label "job" of the metrics; releases with watchNamespaces may have the same name. */}}
{{- define "sandboxpool.metricsJob" -}}
{{- if .Values.watchNamespaces -}}{{ .Release.Namespace }}/{{- end -}}
{{- include "sandboxpool.metricsName" . -}}
{{- end -}}

{{- define "sandboxpool.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sandboxpool.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sandboxpool.labels" -}}
{{ include "sandboxpool.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sandboxpool.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "sandboxpool.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name must name an existing account when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Whether admission policies are rendered: "true" or nothing. */}}
{{- define "sandboxpool.admission" -}}
{{- $wanted := toString .Values.admission.enabled -}}
{{- $served := .Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy" -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") $served) -}}
true
{{- end -}}
{{- end -}}

{{/* Whether the policy for the operator's metadata on pods is rendered: "true" or nothing. */}}
{{- define "sandboxpool.admissionOfPods" -}}
{{- if .Values.admission.pods.enabled -}}
{{- include "sandboxpool.admission" . -}}
{{- end -}}
{{- end -}}

{{- define "sandboxpool.admissionOfNodes" -}}
{{- if .Values.admission.nodes.enabled -}}
{{- include "sandboxpool.admission" . -}}
{{- end -}}
{{- end -}}

{{- define "sandboxpool.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "sandboxpool.opensandboxName" -}}
{{- printf "%s-opensandbox" (include "sandboxpool.fullname" . | trunc 43 | trimSuffix "-") -}}
{{- end -}}

{{/* The label "job" of the bridge's metrics. */}}
{{- define "sandboxpool.opensandboxJob" -}}
{{- if .Values.watchNamespaces -}}{{ .Release.Namespace }}/{{- end -}}
{{- include "sandboxpool.opensandboxName" . -}}-metrics
{{- end -}}

{{- define "sandboxpool.opensandboxSelectorLabels" -}}
app.kubernetes.io/name: {{ printf "%s-opensandbox" (include "sandboxpool.name" . | trunc 51 | trimSuffix "-") }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sandboxpool.opensandboxLabels" -}}
{{- $labels := fromYaml (include "sandboxpool.labels" .) -}}
{{- toYaml (merge (fromYaml (include "sandboxpool.opensandboxSelectorLabels" .)) $labels) -}}
{{- end -}}
