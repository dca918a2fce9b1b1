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
