# cluster-join N: starts node-N beside the server, on a host of its own: a network namespace on the server's link.
n=$1
name=node-$n
dir=$WORK/$name
address=$PREFIX.$((n + 1))
mkdir -p "$dir"
inside="while ! ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip link set lo up; ip address add $address/24 dev eth0; ip link set eth0 up; ip route add default via $SERVER
exec $BINARY agent --server https://$SERVER:6443 --token-file $DATA/node-token --data-dir $dir --node-name $name --node-ip $address \
  $KUBELET_ARGS --log-level info,coxswain=debug"
setsid unshare --net sh -euc "$inside" </dev/null >>"$WORK/$name.log" 2>&1 &
pid=$!
echo $pid >"$WORK/$name.pid"
# Until it is in a namespace of its own.
while [ "$(readlink /proc/$pid/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.02; done
ip link delete "veth-$name" 2>/dev/null || true
ip link add "veth-$name" type veth peer name eth0 netns "$pid"
ip link set "veth-$name" master "$BRIDGE" up
until kubectl --kubeconfig "$DATA/kubeconfig.yaml" wait --for=condition=Ready "node/$name" --timeout=30s 2>/dev/null; do
  kill -0 $pid || { cat "$WORK/$name.log"; exit 1; }
  sleep 0.1
done
for tar in "$WORK"/images/*.tar; do
  ctr --address "$dir/containerd/state/containerd.sock" --namespace k8s.io images import "$tar" >/dev/null
done
