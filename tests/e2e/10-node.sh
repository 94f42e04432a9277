# The node is there, and the API explains itself.
. ./lib.sh
is True kubectl get node "$NODE" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}'
says Ready kubectl get nodes
says "$NODE_IP" kubectl get nodes -o wide
says 'v1.37.0+coxswain' kubectl version
says 'deployments' kubectl api-resources --namespaced=true
says 'apps/v1' kubectl api-versions
says 'KIND:       Pod' kubectl explain pod
says 'terminationGracePeriodSeconds' kubectl explain pod.spec --recursive
says 'Number of desired pods' kubectl explain deployment.spec.replicas
says 'kube-dns' kubectl get services --namespace kube-system
says 'Capacity:' kubectl describe node "$NODE"
is ok kubectl get --raw /readyz
says 'apiserver_request_total' kubectl get --raw /metrics
says '"nodeName"' kubectl get --raw "/api/v1/nodes/$NODE/proxy/stats/summary"
