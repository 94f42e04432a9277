# cluster-leave N: ends node-N and all that runs on it, and forgets it. What is to live on is to be drained before.
name=node-$1
dir=$WORK/$name
cluster-signal "$name" TERM
for shim in $(pgrep -f "containerd.*$dir"); do pkill -KILL -P "$shim" || true; done
pkill -KILL -f "containerd.*$dir" || true
awk -v dir="$dir/" 'index($2, dir) == 1 {print $2}' /proc/mounts | sort -r | while read -r point; do umount -l "$point"; done
rm -rf "$dir" "$WORK/$name.pid"
kubectl --kubeconfig "$DATA/kubeconfig.yaml" delete node "$name"
