{{- define "cpstream.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "cpstream.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "cpstream.metadata" -}}
name: {{ include "cpstream.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "cpstream.selector" . | nindent 2 }}
  app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "cpstream.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* What the init container and the service have in common. */}}
{{- define "cpstream.container" -}}
image: {{ include "cpstream.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
resources: {{- toYaml .Values.resources | nindent 2 }}
env:
  - {name: CPSTREAM_LOG_FORMAT, value: json}
  - {name: CPSTREAM_WORKERS, value: {{ .Values.workers | quote }}}
  - {name: CPSTREAM_DRAIN_TIMEOUT_S, value: {{ .Values.drainSeconds | quote }}}
  {{- with .Values.trustedProxies }}
  - {name: CPSTREAM_TRUSTED_PROXIES, value: {{ . | quote }}}
  {{- end }}
  {{- if .Values.tokens.existingSecret }}
  - {name: CPSTREAM_TOKENS_FILE, value: {{ printf "/run/secrets/cpstream/%s" .Values.tokens.key | quote }}}
  {{- end }}
  {{- if .Values.tls.existingSecret }}
  - {name: CPSTREAM_TLS_CERT_FILE, value: /run/secrets/tls/tls.crt}
  - {name: CPSTREAM_TLS_KEY_FILE, value: /run/secrets/tls/tls.key}
  {{- if .Values.tls.clientCa }}
  - {name: CPSTREAM_TLS_CLIENT_CA_FILE, value: /run/secrets/tls/ca.crt}
  {{- end }}
  {{- end }}
  {{- range $name, $value := .Values.environment }}
  - {name: {{ $name }}, value: {{ $value | toString | quote }}}
  {{- end }}
volumeMounts:
  - {name: snapshots, mountPath: /var/lib/cpstream}
  - {name: tmp, mountPath: /tmp}
  {{- if .Values.source.volume }}
  - {name: source, mountPath: /data, readOnly: true}
  {{- end }}
  {{- if .Values.tokens.existingSecret }}
  - {name: tokens, mountPath: /run/secrets/cpstream, readOnly: true}
  {{- end }}
  {{- if .Values.tls.existingSecret }}
  - {name: tls, mountPath: /run/secrets/tls, readOnly: true}
  {{- end }}
{{- end }}

{{- define "cpstream.probe" -}}
httpGet: {path: {{ .path }}, port: http, scheme: {{ if .Values.tls.existingSecret }}HTTPS{{ else }}HTTP{{ end }}}
{{- end }}
