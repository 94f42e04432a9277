# Changing objects in every way kubectl knows, and looking at them in every form.
. ./lib.sh
kubectl create configmap conf --from-literal=a=1 --from-literal=b=2
kubectl label configmap conf tier=gold
is gold kubectl get configmap conf -o jsonpath='{.metadata.labels.tier}'
kubectl label configmap conf tier=silver --overwrite
kubectl label configmap conf tier-
kubectl annotate configmap conf note='a note'
is 'a note' kubectl get configmap conf -o jsonpath='{.metadata.annotations.note}'

kubectl patch configmap conf --type=merge -p '{"data":{"a":"10"}}'
kubectl patch configmap conf --type=json -p '[{"op":"replace","path":"/data/b","value":"20"}]'
is '10 20' kubectl get configmap conf -o jsonpath='{.data.a} {.data.b}'
kubectl create deployment web --image=docker.io/coxswain/web:1 --replicas=1
kubectl patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"X","value":"1"}]}]}}}}'
is 'docker.io/coxswain/web:1 1' kubectl get deployment web -o jsonpath='{.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].value}'
EDITOR='sed -i s/\"10\"/\"11\"/' kubectl edit configmap conf
is 11 kubectl get configmap conf -o jsonpath='{.data.a}'

cat > manifest.$$ <<'Y'
apiVersion: v1
kind: ConfigMap
metadata: {name: applied}
data: {k: v1, gone: soon}
Y
says created kubectl apply -f manifest.$$
says unchanged kubectl apply -f manifest.$$
sed -i 's/v1, gone: soon/v2/' manifest.$$
sed -i 's/^apiVersion: v2/apiVersion: v1/' manifest.$$
kubectl diff -f manifest.$$ > diff.$$ && { echo 'diff saw no change'; exit 1; } || [ $? = 1 ]
grep -q '^+ *k: v2' diff.$$
says configured kubectl apply -f manifest.$$
is '{"k":"v2"}' kubectl get configmap applied -o jsonpath='{.data}'
says 'serverside-applied' kubectl apply --server-side --force-conflicts -f manifest.$$
says 'serverside-applied' kubectl apply --server-side --force-conflicts -f manifest.$$
says '"manager": "kubectl"' kubectl get configmap applied -o json --show-managed-fields
sed 's/v2/v3/' manifest.$$ > other.$$
refuses 'conflict' kubectl apply --server-side --field-manager=other -f other.$$
says 'serverside-applied' kubectl apply --server-side --field-manager=other --force-conflicts -f other.$$
rm -f manifest.$$ diff.$$ other.$$

is conf kubectl get configmap conf -o custom-columns=N:.metadata.name --no-headers
says '"kind": "ConfigMap"' kubectl get configmap conf -o json
says 'kind: ConfigMap' kubectl get configmap conf -o yaml
says 'configmap/conf' kubectl get configmap -o name
timeout 3 kubectl get configmaps -w > watch.$$ & watcher=$!
sleep 1; kubectl create configmap seen --from-literal=x=y; wait $watcher || true
grep -q '^seen ' watch.$$; rm -f watch.$$
is conf kubectl get configmaps --field-selector=metadata.name=conf -o jsonpath='{.items[*].metadata.name}'

is yes kubectl auth can-i create pods
is no sh -c 'kubectl auth can-i create pods --as=nobody || true'
kubectl create serviceaccount robot
kubectl create role reader --verb=get,list --resource=configmaps
kubectl create rolebinding robots --role=reader --serviceaccount="$NS:robot"
is yes kubectl auth can-i list configmaps --as="system:serviceaccount:$NS:robot"
token=$(kubectl create token robot)
server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}')
says '"applied"' curl -sk -H "Authorization: Bearer $token" "$server/api/v1/namespaces/$NS/configmaps"
says 'cannot list resource \"secrets\"' curl -sk -H "Authorization: Bearer $token" "$server/api/v1/namespaces/$NS/secrets"

# The three cascades.
kubectl rollout status deployment/web --timeout=60s
kubectl delete deployment web --cascade=orphan
says replicaset kubectl get replicasets -l app=web -o name
kubectl delete replicasets -l app=web --cascade=foreground
is '' kubectl get pods -l app=web -o name
kubectl create deployment web --image=docker.io/coxswain/web:1
kubectl wait --for=condition=Available deployment/web --timeout=60s
kubectl delete deployment web --cascade=background
eventually 30 is '' kubectl get replicasets,pods -l app=web -o name
