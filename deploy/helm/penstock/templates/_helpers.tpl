{{/* Names. Objects are called as ingress-nginx's chart calls them, so that the commands people have go on
     working, and an upgrade in place keeps the Service and its address. */}}
{{- define "penstock.name" -}}
{{- default "ingress-nginx" .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "penstock.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if or (contains (include "penstock.name" .) .Release.Name) (contains "penstock" .Release.Name) -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "penstock.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "penstock.controller" -}}
{{- printf "%s-%s" (include "penstock.fullname" .) .Values.controller.name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "penstock.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "penstock.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "penstock.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "penstock.electionID" -}}
{{- default (printf "%s-leader" (include "penstock.fullname" .)) .Values.controller.electionID -}}
{{- end -}}

{{- define "penstock.hashKeySecret" -}}
{{- default (printf "%s-hash-key" (include "penstock.fullname" .)) .Values.controller.hashKey.existingSecret -}}
{{- end -}}

{{- define "penstock.webhookSecret" -}}
{{- default (printf "%s-admission-certificate" (include "penstock.fullname" .)) .Values.controller.admissionWebhooks.existingSecret -}}
{{- end -}}

{{/* Not empty: the agents make the webhook's certificate themselves. */}}
{{- define "penstock.webhookOwn" -}}
{{- with .Values.controller.admissionWebhooks -}}
{{- if and .enabled (not .certManager.enabled) (not .existingSecret) }}yes{{ end -}}
{{- end -}}
{{- end -}}

{{- define "penstock.watchedNamespace" -}}
{{- default (include "penstock.namespace" .) .Values.controller.scope.namespace -}}
{{- end -}}

{{/* A probe that asks the port `metrics` asks it under the name that `metrics.portName` gives it. */}}
{{- define "penstock.probe" -}}
{{- $probe := deepCopy .probe -}}
{{- with $probe.httpGet -}}
{{- if eq (toString .port) "metrics" -}}{{- $_ := set . "port" $.values.controller.metrics.portName -}}{{- end -}}
{{- end -}}
{{- toYaml $probe -}}
{{- end -}}

{{/* Labels. */}}
{{- define "penstock.selectorLabels" -}}
app.kubernetes.io/name: {{ include "penstock.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end -}}

{{- define "penstock.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "penstock.selectorLabels" . }}
app.kubernetes.io/part-of: {{ include "penstock.name" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ include "penstock.strings" . }}
{{- end }}
{{- end -}}

{{/* A map whose values are strings for Kubernetes, although YAML or `--set` made numbers or booleans of them. A
     number from a file is a float, which would be written 1e+06. */}}
{{- define "penstock.strings" -}}
{{- $strings := dict -}}
{{- range $key, $value := . -}}
{{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}{{ $value = int64 $value }}{{ end -}}
{{- $_ := set $strings $key (toString $value) -}}
{{- end -}}
{{- toYaml $strings -}}
{{- end -}}

{{/* Shape. "true" or nothing. */}}
{{- define "penstock.datapath" -}}
{{- default (eq .Values.controller.kind "DaemonSet" | ternary "auto" "off") .Values.controller.datapath -}}
{{- end -}}

{{- define "penstock.kernel" -}}
{{- if ne (include "penstock.datapath" .) "off" }}true{{ end -}}
{{- end -}}

{{- define "penstock.hostNetwork" -}}
{{- if kindIs "bool" .Values.controller.hostNetwork -}}
{{- if .Values.controller.hostNetwork }}true{{ end -}}
{{- else if and (include "penstock.kernel" .) (eq .Values.controller.kind "DaemonSet") }}true{{ end -}}
{{- end -}}

{{- define "penstock.lowPorts" -}}
{{- if or (lt (int .Values.controller.containerPort.http) 1024) (lt (int .Values.controller.containerPort.https) 1024) }}true{{ end -}}
{{- end -}}

{{/* Names of ports 1234-tcp. */}}
{{- define "penstock.portName" -}}
{{- $prefix := .root.Values.portNamePrefix -}}
{{- $prefix | empty | ternary (printf "%v-%s" .port .protocol) (printf "%s-%v-%s" $prefix .port .protocol) -}}
{{- end -}}

{{- define "penstock.image" -}}
{{- with .Values.controller.image -}}
{{- if .registry }}{{ .registry }}/{{ end }}{{ .image }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ default $.Chart.AppVersion .tag }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Keys below `controller` that were given and mean nothing here; said in the notes. */}}
{{- define "penstock.ignored" -}}
{{- $known := list "name" "kind" "replicaCount" "image" "datapath" "interfaces" "announce" "hashKey" "hostNetwork" "dnsPolicy" "dnsConfig" "containerPort" "hostPort" "config" "configAnnotations" "addHeaders" "proxySetHeaders" "addressPools" "defaultBackendService" "extraArgs" "extraEnvs" "extraContainers" "extraInitContainers" "extraVolumes" "extraVolumeMounts" "ingressClass" "ingressClassResource" "watchIngressWithoutClass" "ingressClassByName" "scope" "publishService" "updateStatus" "reportNodeInternalIp" "electionID" "labels" "annotations" "podLabels" "podAnnotations" "updateStrategy" "minReadySeconds" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" "hostAliases" "resources" "temporaryDirectory" "terminationGracePeriodSeconds" "shutdownGracePeriod" "lifecycle" "livenessProbe" "readinessProbe" "startupProbe" "podSecurityContext" "containerSecurityContext" "sysctls" "autoscaling" "minAvailable" "maxUnavailable" "networkPolicy" "service" "metrics" "admissionWebhooks" -}}
{{- $ignored := list -}}
{{- range $key := keys .Values.controller | sortAlpha -}}
{{- if not (has $key $known) }}{{ $ignored = append $ignored (printf "controller.%s" $key) }}{{ end -}}
{{- end -}}
{{- $top := list "nameOverride" "fullnameOverride" "namespaceOverride" "commonLabels" "imagePullSecrets" "revisionHistoryLimit" "rbac" "serviceAccount" "tcp" "udp" "portNamePrefix" "controller" "global" -}}
{{- range $key := keys .Values | sortAlpha -}}
{{- if not (has $key $top) }}{{ $ignored = append $ignored $key }}{{ end -}}
{{- end -}}
{{- join " " $ignored -}}
{{- end -}}
