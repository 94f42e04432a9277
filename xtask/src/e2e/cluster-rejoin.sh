# cluster-rejoin N: starts node-N's agent again on the host where its containers run, without a token.
name=node-$1
dir=$WORK/$name
address=$PREFIX.$(($1 + 1))
eval "set -- $KUBELET_ARGS"
setsid nsenter --net="/proc/$(cat "$dir/containerd/state/containerd.pid")/ns/net" \
  "$BINARY" agent --server "https://$SERVER:6443" --data-dir "$dir" --node-name "$name" --node-ip "$address" "$@" \
  --log-level info,coxswain=debug </dev/null >>"$WORK/$name.log" 2>&1 &
echo $! >"$WORK/$name.pid"
