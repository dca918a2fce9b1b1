{{/* What the operator does with pools, claims and their pods, in one namespace or in all. */}}
{{- define "sandboxpool.rulesOfPools" -}}
# Written by users. kopf keeps no state in the objects, so reading is enough.
- apiGroups: [sandboxpool.io]
  resources: [sandboxpools]
  verbs: [get, list, watch]
# Finished claims are deleted when their ttlSecondsAfterFinished has passed.
- apiGroups: [sandboxpool.io]
  resources: [sandboxclaims]
  verbs: [get, list, watch, delete]
- apiGroups: [sandboxpool.io]
  resources: [sandboxpools/status, sandboxclaims/status]
  verbs: [patch]
# No permission on finalizers is needed with the plugin OwnerReferencesPermissionEnforcement: it
# requires one only if blockOwnerDeletion is true, and the operator always sets it to false.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
# The budget over the claimed sandboxes of a pool with claims.disruption: Protect.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch, delete]
# The kubelet's events say why a sandbox does not start; the operator posts its own.
- apiGroups: [""]
  resources: [events]
  verbs: [list, watch, create]
{{- end -}}

{{/* One object for each RuntimeClass, which only the operator writes. */}}
{{- define "sandboxpool.rulesOfRuntimes" -}}
# One object for each RuntimeClass, which only the operator writes.
- apiGroups: [sandboxpool.io]
  resources: [sandboxruntimes]
  verbs: [get, list, watch, create, delete]
- apiGroups: [sandboxpool.io]
  resources: [sandboxruntimes/status]
  verbs: [patch]
{{- end -}}

{{/* Binds a role to the operator's account: root context, "Cluster" or "", name, namespace. */}}
{{- define "sandboxpool.binding" -}}
{{- $root := index . 0 -}}
{{- $scope := index . 1 -}}
{{- $name := index . 2 -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $scope }}RoleBinding
metadata:
  name: {{ $name }}
  {{- with index . 3 }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "sandboxpool.labels" $root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $scope }}Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "sandboxpool.serviceAccountName" $root }}
    namespace: {{ $root.Release.Namespace }}
{{- end -}}
