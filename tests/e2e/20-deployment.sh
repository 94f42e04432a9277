# A deployment's life: create, expose, look, scale, roll, undo, restart, delete.
. ./lib.sh
kubectl create deployment web --image=docker.io/coxswain/web:1 --replicas=3
kubectl rollout status deployment/web --timeout=60s
kubectl expose deployment web --port=80
says 'deployment.apps/web' kubectl get all -o wide
says '3/3' kubectl get deployment web
says 'docker.io/coxswain/web:1' kubectl describe deployment web
says 'ScalingReplicaSet' kubectl describe deployment web
is 3 kubectl get deployment web -o jsonpath='{.status.readyReplicas}'

kubectl scale deployment web --replicas=5
kubectl rollout status deployment/web --timeout=60s
is 5 kubectl get deployment web -o jsonpath='{.status.availableReplicas}'
kubectl scale deployment web --replicas=2
eventually 30 is 2 sh -c "kubectl get pods -l app=web --no-headers | wc -l | tr -d ' '"

kubectl set image deployment/web web=docker.io/coxswain/web:2
kubectl rollout status deployment/web --timeout=60s
says 'REVISION' kubectl rollout history deployment/web
says '2' kubectl rollout history deployment/web
kubectl rollout undo deployment/web
kubectl rollout status deployment/web --timeout=60s
is docker.io/coxswain/web:1 kubectl get deployment web -o jsonpath='{.spec.template.spec.containers[0].image}'
kubectl rollout restart deployment/web
kubectl rollout status deployment/web --timeout=60s
says 'kubectl.kubernetes.io/restartedAt' kubectl get deployment web -o yaml
kubectl rollout pause deployment/web
kubectl rollout resume deployment/web

# A killed pod is replaced at once.
victim=$(kubectl get pods -l app=web -o name | head -1)
kubectl delete "$victim" --wait=false
eventually 30 is 2 kubectl get deployment web -o jsonpath='{.status.availableReplicas}'

kubectl delete deployment web
eventually 30 is '' kubectl get replicasets,pods -l app=web -o name
