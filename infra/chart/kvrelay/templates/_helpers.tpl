{{- define "kvrelay.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* Which pods belong to a component: (list . "prefill"). */ -}}
{{- define "kvrelay.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: kvrelay
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "kvrelay.labels" -}}
{{- $top := index . 0 -}}
{{ include "kvrelay.selector" . }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ $top.Chart.Name }}-{{ $top.Chart.Version }}
{{- end }}

{{- /* The settings of a kind of node, as JSON: (list . "prefill"). */ -}}
{{- define "kvrelay.node" -}}
{{- $top := index . 0 -}}
{{- mergeOverwrite (deepCopy $top.Values.node) (deepCopy (index $top.Values (index . 1))) | toJson }}
{{- end }}

{{- define "kvrelay.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "kvrelay.secret" -}}
{{ .Values.existingSecret | default (printf "%s-trust" (include "kvrelay.name" .)) }}
{{- end }}

{{- define "kvrelay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "kvrelay.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* What all pods of kvrelay have beside their containers: (list . settings component). */ -}}
{{- define "kvrelay.placement" -}}
{{- $top := index . 0 -}}
{{- $settings := index . 1 -}}
serviceAccountName: {{ include "kvrelay.name" $top }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $top.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $settings.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $settings.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $settings.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "kvrelay.selector" (list $top (index $ 2)) | nindent 8 }}
  {{- end }}
{{- end }}

{{- /* Environment that coordinators and nodes share. */ -}}
{{- define "kvrelay.env" -}}
- name: KVRELAY_HOST
  value: 0.0.0.0
- name: KVRELAY_ADVERTISE_HOST
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: KVRELAY_CONTROL_PORT
  value: {{ .Values.ports.control | quote }}
- name: KVRELAY_CLUSTER_SECRET_FILE
  value: /run/kvrelay/cluster-secret
- name: KVRELAY_REDIS_URL
  {{- if .Values.redis.bundled }}
  value: redis://kvrelay@{{ include "kvrelay.name" . }}-redis:{{ .Values.redis.port }}/0?password_file=/run/kvrelay/redis-password
  {{- else }}
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.urlSecret.name }}, key: {{ .Values.redis.urlSecret.key }}}}
  {{- end }}
- name: KVRELAY_MODEL_PATH
  value: {{ .Values.model.path | quote }}
{{- with .Values.model.tokenSecret }}
{{- if .name }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- end }}

{{- /* Mounts and volumes that coordinators and nodes share. */ -}}
{{- define "kvrelay.mounts" -}}
- {name: trust, mountPath: /run/kvrelay, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /var/cache/kvrelay}
{{- if ne .Values.model.volume "none" }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- define "kvrelay.volumes" -}}
- name: trust
  secret:
    secretName: {{ include "kvrelay.secret" . }}
    defaultMode: 0440
    items:
      - {key: cluster-secret, path: cluster-secret}
      {{- if .Values.redis.bundled }}
      - {key: redis-password, path: redis-password}
      {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- if eq .Values.model.volume "pvc" }}
- name: models
  persistentVolumeClaim: {claimName: {{ .Values.model.claim }}, readOnly: true}
{{- else if eq .Values.model.volume "hostPath" }}
- name: models
  hostPath: {path: {{ .Values.model.hostPath }}, type: Directory}
{{- end }}
{{- end }}

{{- /* A peer of a NetworkPolicy's rule: a component of this release. */ -}}
{{- define "kvrelay.peer" -}}
- podSelector:
    matchLabels: {{- include "kvrelay.selector" . | nindent 6 }}
{{- end }}

{{- define "kvrelay.nodePeers" -}}
{{ include "kvrelay.peer" (list . "prefill") }}
{{ include "kvrelay.peer" (list . "decode") }}
{{- end }}
