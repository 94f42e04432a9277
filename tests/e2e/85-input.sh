# Bad input gets a clear answer.
. ./lib.sh
server=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}')
token=$(kubectl create token default)
kubectl create rolebinding edit --clusterrole=edit --serviceaccount="$NS:default"
api() { curl -sk -H "Authorization: Bearer $token" "$@"; }
url="$server/api/v1/namespaces/$NS/configmaps"
says '"code": 400' api -X POST -H 'Content-Type: application/json' -d '{bad' "$url"
says '"code": 415' api -X POST -H 'Content-Type: text/nonsense' -d 'x' "$url"
says '"code": 406' api -H 'Accept: image/png' "$url"
refuses 'could not find the requested resource' kubectl get --raw "/api/v1/namespaces/$NS/nonsense"
says '"code": 400' api "$url?labelSelector=a%20b%20c"
says 'field label not supported' api "$url?fieldSelector=spec.x=y"
says '"code": 401' curl -sk -H 'Authorization: Bearer nonsense' "$url"
says '"code": 403' curl -sk "$url"
head -c 4000000 /dev/zero | tr '\0' a > big.$$
says '"code": 413' api -X POST -H 'Content-Type: application/json' --data-binary @big.$$ "$url"
rm -f big.$$
says 'unknown field \"spec.nonsense\"' api -X POST -H 'Content-Type: application/json' \
  -d '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"nonsense":1,"containers":[{"name":"a","image":"b"}]}}' \
  "$server/api/v1/namespaces/$NS/pods?fieldValidation=Strict"
refuses 'Invalid value: "Upper"' kubectl create configmap Upper
refuses 'spec.template.metadata.labels: Invalid value' kubectl create -f - <<'Y'
apiVersion: apps/v1
kind: Deployment
metadata: {name: wrong}
spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c, image: busybox}]}}}
Y
refuses 'already exists' sh -c "kubectl create configmap twice && kubectl create configmap twice"
refuses 'field is immutable' sh -c "kubectl create deployment fixed --image=x && kubectl patch deployment fixed -p '{\"spec\":{\"selector\":{\"matchLabels\":{\"a\":\"b\"}}}}'"
refuses 'the object has been modified' sh -c "kubectl get configmap twice -o yaml | sed 's/resourceVersion: .*/resourceVersion: \"1\"/' | kubectl replace -f -"
