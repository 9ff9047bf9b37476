{{/* Values that were given and have no effect, on their own or beside the others: one line for each, with what does
     its work where somebody could expect it to have one. Said in the notes.

     First what there is, map by map, as in values.yaml. */}}
{{- define "penstock.known" -}}
{{- $known := dict -}}
{{- $_ := set $known "" "nameOverride global fullnameOverride namespaceOverride commonLabels imagePullSecrets revisionHistoryLimit rbac serviceAccount tcp udp portNamePrefix controller defaultBackend" -}}
{{- $_ := set $known "global" "image" -}}
{{- $_ := set $known "global.image" "registry" -}}
{{- $_ := set $known "rbac" "create" -}}
{{- $_ := set $known "serviceAccount" "create name annotations" -}}
{{- $_ := set $known "controller" "name containerName kind replicaCount image datapath interfaces announce hashKey hostNetwork dnsPolicy dnsConfig containerPort hostPort config configAnnotations addHeaders proxySetHeaders addressPools allowSnippetAnnotations defaultBackendService extraArgs extraEnvs extraContainers extraInitContainers extraVolumes extraVolumeMounts ingressClass ingressClassResource watchIngressWithoutClass ingressClassByName enableTopologyAwareRouting scope publishService updateStatus reportNodeInternalIp electionID electionTTL disableLeaderElection labels annotations podLabels podAnnotations updateStrategy minReadySeconds progressDeadlineSeconds nodeSelector tolerations affinity topologySpreadConstraints priorityClassName runtimeClassName hostAliases shareProcessNamespace resources temporaryDirectory terminationGracePeriodSeconds shutdownGracePeriod lifecycle healthCheckPath livenessProbe readinessProbe startupProbe podSecurityContext containerSecurityContext sysctls autoscaling autoscalingTemplate minAvailable maxUnavailable unhealthyPodEvictionPolicy networkPolicy admissionWebhooks service metrics" -}}
{{- $_ := set $known "controller.image" "registry image repository tag digest pullPolicy" -}}
{{- $_ := set $known "controller.hostPort" "enabled ports" -}}
{{- $_ := set $known "controller.ingressClassResource" "enabled name default controllerValue aliases annotations parameters" -}}
{{- $_ := set $known "controller.autoscaling" "enabled annotations minReplicas maxReplicas targetCPUUtilizationPercentage targetMemoryUtilizationPercentage behavior" -}}
{{- $_ := set $known "controller.admissionWebhooks" "enabled warnOnly port failurePolicy timeoutSeconds annotations labels namespaceSelector objectSelector certManager existingSecret caBundle service" -}}
{{- $_ := set $known "controller.admissionWebhooks.certManager" "enabled duration issuerRef" -}}
{{- $_ := set $known "controller.admissionWebhooks.service" "annotations servicePort type clusterIP externalIPs loadBalancerIP loadBalancerSourceRanges" -}}
{{- $_ := set $known "controller.service" "enabled type annotations labels externalTrafficPolicy healthCheckNodePort clusterIP clusterIPs externalIPs loadBalancerIP loadBalancerClass loadBalancerSourceRanges allocateLoadBalancerNodePorts sessionAffinity trafficDistribution ipFamilyPolicy ipFamilies enableHttp enableHttps appProtocol ports targetPorts nodePorts external internal" -}}
{{- $_ := set $known "controller.service.nodePorts" "http https tcp udp" -}}
{{- $_ := set $known "controller.service.internal" "enabled annotations labels type externalTrafficPolicy clusterIP clusterIPs externalIPs loadBalancerIP loadBalancerClass loadBalancerSourceRanges allocateLoadBalancerNodePorts healthCheckNodePort sessionAffinity trafficDistribution ipFamilyPolicy ipFamilies appProtocol ports targetPorts nodePorts" -}}
{{- $_ := set $known "controller.metrics" "enabled port portName service serviceMonitor prometheusRule dashboard" -}}
{{- $_ := set $known "controller.metrics.service" "enabled annotations labels type servicePort clusterIP externalIPs externalTrafficPolicy loadBalancerIP loadBalancerSourceRanges nodePort" -}}
{{- $_ := set $known "controller.metrics.serviceMonitor" "enabled additionalLabels annotations namespace namespaceSelector scrapeInterval scrapeTimeout honorLabels targetLabels relabelings metricRelabelings" -}}
{{- $_ := set $known "controller.metrics.prometheusRule" "enabled additionalLabels annotations namespace defaultRules rules" -}}
{{- $_ := set $known "defaultBackend" "enabled name image extraArgs extraEnvs extraVolumes extraVolumeMounts port replicaCount minAvailable labels podLabels podAnnotations updateStrategy minReadySeconds nodeSelector tolerations affinity topologySpreadConstraints priorityClassName resources podSecurityContext containerSecurityContext livenessProbe readinessProbe autoscaling service" -}}
{{- $_ := set $known "defaultBackend.image" "registry image repository tag digest pullPolicy runAsUser" -}}
{{- $_ := set $known "defaultBackend.autoscaling" "enabled annotations minReplicas maxReplicas targetCPUUtilizationPercentage targetMemoryUtilizationPercentage" -}}
{{- $_ := set $known "defaultBackend.service" "annotations servicePort type clusterIP externalIPs loadBalancerIP loadBalancerSourceRanges" -}}
{{- toYaml $known -}}
{{- end -}}

{{/* Of values that mean something to the chart of ingress-nginx: why they mean nothing here. */}}
{{- define "penstock.instead" -}}
controller.configMapNamespace: "the ConfigMap is in the namespace of the pods"
controller.customTemplate: "there is no nginx.conf; what the template changed is a key of controller.config or an annotation, or has to wait"
controller.enableAnnotationValidations: "annotations are always judged"
controller.enableMimalloc: "there is one allocator"
controller.existingPsp: "there is no PodSecurityPolicy to name since Kubernetes 1.25"
controller.extraModules: "there are no modules of nginx"
controller.healthCheckHost: "it is extraArgs.healthz-host"
controller.hostname: "pods have the names that Kubernetes gives them"
controller.keda: "write a ScaledObject for the Deployment yourself, and leave controller.autoscaling off"
controller.lifecycle.preStop: "the program /wait-shutdown is ingress-nginx's; SIGTERM waits as shutdownGracePeriod says"
controller.maxmindLicenseKey: "addresses are not looked up: $geoip2_* are empty"
controller.opentelemetry: "there is no module to load: enable-opentelemetry and otlp-collector-host in controller.config are enough"
controller.tcp: "the ConfigMap is in the namespace of the pods and has no annotations of its own"
controller.udp: "the ConfigMap is in the namespace of the pods and has no annotations of its own"
controller.admissionWebhooks.certificate: "it is mounted where the pod expects it"
controller.admissionWebhooks.key: "it is mounted where the pod expects it"
controller.admissionWebhooks.createSecretJob: "no Job makes the certificate: the pods do, or cert-manager"
controller.admissionWebhooks.patchWebhookJob: "no Job makes the certificate: the pods do, or cert-manager"
controller.admissionWebhooks.patch: "no Job makes the certificate: the pods do, or cert-manager"
controller.admissionWebhooks.existingPsp: "there is no PodSecurityPolicy to name since Kubernetes 1.25"
controller.admissionWebhooks.extraEnvs: "the webhook is in the controller's pod: controller.extraEnvs"
controller.admissionWebhooks.networkPolicy: "controller.networkPolicy has a rule for the webhook"
controller.image.chroot: "nothing of users is run, so there is nothing to lock in"
controller.image.digestChroot: "nothing of users is run, so there is nothing to lock in"
controller.image.runAsUser: "it is controller.containerSecurityContext"
controller.image.runAsGroup: "it is controller.containerSecurityContext"
controller.image.runAsNonRoot: "it is controller.containerSecurityContext"
controller.image.allowPrivilegeEscalation: "it is controller.containerSecurityContext"
controller.image.readOnlyRootFilesystem: "it is controller.containerSecurityContext"
controller.image.seccompProfile: "it is controller.containerSecurityContext"
defaultBackend.existingPsp: "there is no PodSecurityPolicy to name since Kubernetes 1.25"
defaultBackend.serviceAccount: "its pods get no token"
dhParam: "ciphers with DHE are not offered, so they need no parameters"
podSecurityPolicy: "there is none since Kubernetes 1.25"
rbac.scope: "with controller.scope.enabled rights are given in that namespace alone"
serviceAccount.automountServiceAccountToken: "the pod asks for its token itself, the account gives none away"
{{- end -}}

{{/* "true" where the program is to end by one that this image does not have. */}}
{{- define "penstock.waitShutdown" -}}
{{- $command := dig "preStop" "exec" "command" list .Values.controller.lifecycle -}}
{{- if and $command (eq (toString (first $command)) "/wait-shutdown") }}true{{ end -}}
{{- end -}}

{{/* "true" where a value asks for nothing, as a copy of all defaults does. */}}
{{- define "penstock.asksNothing" -}}
{{- if kindIs "map" . -}}
{{- $all := true -}}
{{- range $key, $value := . -}}{{- if not (include "penstock.asksNothing" $value) }}{{ $all = false }}{{ end -}}{{- end -}}
{{- if or $all (and (hasKey . "enabled") (not .enabled)) }}true{{ end -}}
{{- else if not . }}true{{ end -}}
{{- end -}}

{{- define "penstock.ignored" -}}
{{- $instead := include "penstock.instead" . | fromYaml -}}
{{- $ignored := list -}}
{{- range $path, $keys := include "penstock.known" . | fromYaml -}}
{{- $node := $.Values -}}
{{- range $key := compact (splitList "." $path) -}}{{- if kindIs "map" $node }}{{ $node = get $node $key }}{{ end -}}{{- end -}}
{{- if kindIs "map" $node -}}
{{- range $key := keys $node | sortAlpha -}}
{{- $name := join "." (compact (list $path $key)) -}}
{{- if has $key (splitList " " $keys) -}}
{{- else if not (hasKey $instead $name) }}{{ $ignored = append $ignored $name -}}
{{- else if not (include "penstock.asksNothing" (get $node $key)) }}{{ $ignored = append $ignored (printf "%s: %s" $name (get $instead $name)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if include "penstock.waitShutdown" . }}{{ $ignored = append $ignored (printf "controller.lifecycle.preStop: %s" (get $instead "controller.lifecycle.preStop")) }}{{ end -}}
{{- if not (include "penstock.kernel" .) -}}
{{- range $name := list "announce.interfaces" "interfaces" "hashKey.existingSecret" -}}
{{- $node := $.Values.controller -}}
{{- range $key := splitList "." $name }}{{ $node = get $node $key }}{{ end -}}
{{- if $node }}{{ $ignored = append $ignored (printf "controller.%s: there is no kernel part, see controller.datapath" $name) }}{{ end -}}
{{- end -}}
{{- if .Values.controller.addressPools }}{{ $ignored = append $ignored "controller.addressPools: there is no kernel part, so addresses are given away that nobody serves" }}{{ end -}}
{{- end -}}
{{- if eq .Values.controller.kind "DaemonSet" -}}
{{- with .Values.controller -}}
{{- $each := "a DaemonSet has one pod on each node" -}}
{{- if ne (int .replicaCount) 1 }}{{ $ignored = append $ignored (printf "controller.replicaCount: %s" $each) }}{{ end -}}
{{- if .autoscaling.enabled }}{{ $ignored = append $ignored (printf "controller.autoscaling: %s" $each) }}{{ end -}}
{{- if .autoscalingTemplate }}{{ $ignored = append $ignored (printf "controller.autoscalingTemplate: %s" $each) }}{{ end -}}
{{- $evicted := "evictions leave the pods of a DaemonSet alone; how many are replaced at once, controller.updateStrategy says" -}}
{{- if ne (toString .minAvailable) "1" }}{{ $ignored = append $ignored (printf "controller.minAvailable: %s" $evicted) }}{{ end -}}
{{- if not (kindIs "invalid" .maxUnavailable) }}{{ $ignored = append $ignored (printf "controller.maxUnavailable: %s" $evicted) }}{{ end -}}
{{- if .unhealthyPodEvictionPolicy }}{{ $ignored = append $ignored (printf "controller.unhealthyPodEvictionPolicy: %s" $evicted) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- with .Values.controller.metrics -}}
{{- if not .enabled -}}
{{- range $part := list "serviceMonitor" "prometheusRule" "dashboard" -}}
{{- if (get $.Values.controller.metrics $part).enabled }}{{ $ignored = append $ignored (printf "controller.metrics.%s: without controller.metrics.enabled" $part) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.defaultBackend.enabled .Values.controller.defaultBackendService }}{{ $ignored = append $ignored "defaultBackend: controller.defaultBackendService names another Service" }}{{ end -}}
{{- join "\n  " ($ignored | sortAlpha) -}}
{{- end -}}
