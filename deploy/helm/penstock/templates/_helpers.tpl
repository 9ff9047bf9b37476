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

{{/* A map whose values are strings for Kubernetes, although YAML or `--set` made numbers or booleans of them. */}}
{{- define "penstock.strings" -}}
{{- $strings := dict -}}
{{- range $key, $value := . -}}
{{- $_ := set $strings $key (include "penstock.text" $value) -}}
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

{{/* Values that were given and have no effect, on their own or beside the others; said in the notes. */}}
{{- define "penstock.ignored" -}}
{{- $known := list "name" "kind" "replicaCount" "image" "datapath" "interfaces" "announce" "hashKey" "hostNetwork" "dnsPolicy" "dnsConfig" "containerPort" "hostPort" "config" "configAnnotations" "addHeaders" "proxySetHeaders" "addressPools" "defaultBackendService" "extraArgs" "extraEnvs" "extraContainers" "extraInitContainers" "extraVolumes" "extraVolumeMounts" "ingressClass" "ingressClassResource" "watchIngressWithoutClass" "ingressClassByName" "scope" "publishService" "updateStatus" "reportNodeInternalIp" "electionID" "labels" "annotations" "podLabels" "podAnnotations" "updateStrategy" "minReadySeconds" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" "hostAliases" "resources" "temporaryDirectory" "terminationGracePeriodSeconds" "shutdownGracePeriod" "lifecycle" "livenessProbe" "readinessProbe" "startupProbe" "podSecurityContext" "containerSecurityContext" "sysctls" "autoscaling" "minAvailable" "maxUnavailable" "networkPolicy" "service" "metrics" "admissionWebhooks" -}}
{{- $ignored := list -}}
{{- range $key := keys .Values.controller | sortAlpha -}}
{{- if not (has $key $known) }}{{ $ignored = append $ignored (printf "controller.%s" $key) }}{{ end -}}
{{- end -}}
{{- $below := dict -}}
{{- $_ := set $below "image" "registry image tag digest pullPolicy" -}}
{{- $_ := set $below "service" "enabled type annotations labels externalTrafficPolicy healthCheckNodePort clusterIP externalIPs loadBalancerIP loadBalancerClass loadBalancerSourceRanges allocateLoadBalancerNodePorts sessionAffinity ipFamilyPolicy ipFamilies enableHttp enableHttps appProtocol ports targetPorts nodePorts" -}}
{{- $_ := set $below "metrics" "enabled port portName service serviceMonitor prometheusRule dashboard" -}}
{{- $_ := set $below "metrics.service" "enabled annotations labels type servicePort" -}}
{{- $_ := set $below "metrics.serviceMonitor" "enabled additionalLabels annotations namespace namespaceSelector scrapeInterval scrapeTimeout honorLabels targetLabels relabelings metricRelabelings" -}}
{{- $_ := set $below "metrics.prometheusRule" "enabled additionalLabels annotations namespace defaultRules rules" -}}
{{- $_ := set $below "metrics.dashboard" "enabled labels annotations" -}}
{{- $_ := set $below "admissionWebhooks" "enabled port failurePolicy timeoutSeconds annotations namespaceSelector objectSelector certManager existingSecret caBundle service" -}}
{{- $_ := set $below "admissionWebhooks.certManager" "enabled duration issuerRef" -}}
{{- $_ := set $below "admissionWebhooks.service" "annotations servicePort" -}}
{{- $_ := set $below "ingressClassResource" "enabled name default controllerValue annotations parameters" -}}
{{- $_ := set $below "publishService" "enabled pathOverride" -}}
{{- $_ := set $below "scope" "enabled namespace namespaceSelector" -}}
{{- $_ := set $below "autoscaling" "enabled annotations minReplicas maxReplicas targetCPUUtilizationPercentage targetMemoryUtilizationPercentage behavior" -}}
{{- range $path, $keys := $below -}}
{{- $node := $.Values.controller -}}
{{- range $key := splitList "." $path -}}{{- if kindIs "map" $node }}{{ $node = get $node $key }}{{ end -}}{{- end -}}
{{- if kindIs "map" $node -}}
{{- range $key := keys $node | sortAlpha -}}
{{- if not (has $key (splitList " " $keys)) }}{{ $ignored = append $ignored (printf "controller.%s.%s" $path $key) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (include "penstock.kernel" .) -}}
{{- $without := "without a kernel part" -}}
{{- with .Values.controller.announce.interfaces }}{{ $ignored = append $ignored (printf "controller.announce (%s)" $without) }}{{ end -}}
{{- with .Values.controller.interfaces }}{{ $ignored = append $ignored (printf "controller.interfaces (%s)" $without) }}{{ end -}}
{{- with .Values.controller.hashKey.existingSecret }}{{ $ignored = append $ignored (printf "controller.hashKey (%s)" $without) }}{{ end -}}
{{- with .Values.controller.addressPools }}{{ $ignored = append $ignored (printf "controller.addressPools (%s addresses are given away that nobody serves)" $without) }}{{ end -}}
{{- end -}}
{{- with .Values.controller.metrics -}}
{{- if not .enabled -}}
{{- range $part := list "serviceMonitor" "prometheusRule" "dashboard" -}}
{{- if (get $.Values.controller.metrics $part).enabled }}{{ $ignored = append $ignored (printf "controller.metrics.%s (without controller.metrics.enabled)" $part) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $top := list "nameOverride" "fullnameOverride" "namespaceOverride" "commonLabels" "imagePullSecrets" "revisionHistoryLimit" "rbac" "serviceAccount" "tcp" "udp" "portNamePrefix" "controller" "global" -}}
{{- range $key := keys .Values | sortAlpha -}}
{{- if not (has $key $top) }}{{ $ignored = append $ignored $key }}{{ end -}}
{{- end -}}
{{- join ", " $ignored -}}
{{- end -}}

{{/* A value as text. Numbers of a values file are floats, which would be written as 1.048576e+06. */}}
{{- define "penstock.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}
