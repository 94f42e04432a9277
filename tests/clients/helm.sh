# Helm: a chart as `helm create` makes it, with a kind of its own, is installed, tested, upgraded, fails, is rolled back, is removed.
. ../e2e/lib.sh
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
export HELM_CACHE_HOME="$work/cache" HELM_CONFIG_HOME="$work/config" HELM_DATA_HOME="$work/data"
chart=$work/web
$HELM create "$chart"
sed -i 's|image: busybox$|image: docker.io/library/busybox:1|' "$chart/templates/tests/test-connection.yaml"
mkdir "$chart/crds"
cat > "$chart/crds/gears.yaml" <<CRD
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gears.helm.example.com}
spec:
  group: helm.example.com
  scope: Namespaced
  names: {plural: gears, singular: gear, kind: Gear}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {teeth: {type: integer, minimum: 3, default: 8}}}}}}
CRD
cat > "$chart/templates/gear.yaml" <<'GEAR'
apiVersion: helm.example.com/v1
kind: Gear
metadata: {name: {{ .Release.Name }}}
spec: {teeth: {{ .Values.teeth }}}
GEAR
cat > "$chart/templates/hook.yaml" <<'HOOK'
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-prepare
  annotations: {helm.sh/hook: "pre-install,pre-upgrade", helm.sh/hook-delete-policy: "before-hook-creation,hook-succeeded"}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: prepare, image: "docker.io/library/busybox:1", command: ["true"]}]
HOOK
image='--set image.repository=docker.io/coxswain/web --set-string image.tag=1'

$HELM lint "$chart" --set teeth=12
$HELM install r "$chart" $image --set teeth=12 --wait --timeout=90s
says 'deployed' $HELM status r
is 1 kubectl get deployment r-web -o jsonpath='{.status.readyReplicas}'
is 12 kubectl get gear r -o jsonpath='{.spec.teeth}'
is '' kubectl get jobs -o name
is helm.sh/release.v1 kubectl get secret sh.helm.release.v1.r.v1 -o jsonpath='{.type}'
says 'Phase:          Succeeded' $HELM test r
says 'r-web' $HELM get manifest r
# What the server would take, told by it.
says 'teeth: 14' $HELM upgrade r "$chart" $image --set teeth=14 --dry-run=server
is 12 kubectl get gear r -o jsonpath='{.spec.teeth}'
refuses 'cannot reuse a name' $HELM install r "$chart" $image --set teeth=12

$HELM upgrade r "$chart" $image --set teeth=20 --set replicaCount=2 --wait --timeout=90s
is 2 kubectl get deployment r-web -o jsonpath='{.status.readyReplicas}'
is 20 kubectl get gear r -o jsonpath='{.spec.teeth}'
# What the schema refuses, helm tells, and goes back.
refuses 'should be greater than or equal to 3' $HELM upgrade r "$chart" $image --set teeth=1
says 'failed' $HELM history r
refuses '' $HELM upgrade r "$chart" --set image.repository=docker.io/coxswain/none --set-string image.tag=0 --set teeth=5 --rollback-on-failure --timeout=8s
eventually 30 is 20 kubectl get gear r -o jsonpath='{.spec.teeth}'
$HELM rollback r 1 --wait --timeout=90s
is 12 kubectl get gear r -o jsonpath='{.spec.teeth}'
eventually 30 is 1 kubectl get deployment r-web -o jsonpath='{.status.replicas}'
says 'Rollback to 1' $HELM history r

# Someone else owns a field: helm applies on the server, and says who.
kubectl apply --server-side --force-conflicts --field-manager=someone -f - <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: r-web, namespace: $NS}
spec: {replicas: 3}
YAML
refuses 'conflict' $HELM upgrade r "$chart" $image --set teeth=12 --set replicaCount=4
$HELM upgrade r "$chart" $image --set teeth=12 --set replicaCount=1 --force-conflicts --wait --timeout=90s
is 1 kubectl get deployment r-web -o jsonpath='{.spec.replicas}'

says 'r' $HELM list --short
$HELM uninstall r --wait --timeout=90s
is '' $HELM list --short
is '' kubectl get deployments,services,gears -o name
kubectl delete crd gears.helm.example.com
