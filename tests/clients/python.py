"""What a program in Python does to a cluster, by the official client. Ends with an error at the first answer that is not as it should be."""

import base64
import datetime
import os
import threading
import time

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
from kubernetes.stream import portforward, stream

NS = os.environ["NS"]
BUSYBOX = "docker.io/library/busybox:1"
config.load_kube_config()
core, apps, batch = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api()


def refused(code, reason, call, *args, **more):
    """The call fails with this status."""
    try:
        call(*args, **more)
    except ApiException as error:
        assert error.status == code, error
        assert f'"reason":"{reason}"' in error.body, error.body
        return error
    raise AssertionError(f"should have been refused with {code}")


def eventually(what, until=60):
    end = time.monotonic() + until
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def configmap(name, **data):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"app": "py"}), data=data)


def versions():
    assert client.VersionApi().get_code().major == "1"
    groups = {group.name for group in client.ApisApi().get_api_versions().groups}
    assert {"apps", "batch", "rbac.authorization.k8s.io"} <= groups, groups


def objects():
    made = core.create_namespaced_config_map(NS, configmap("a", k="1"))
    assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo, made
    refused(409, "AlreadyExists", core.create_namespaced_config_map, NS, configmap("a"))
    refused(404, "NotFound", core.read_namespaced_config_map, "none", NS)
    refused(422, "Invalid", core.create_namespaced_config_map, NS, configmap("Not_A_Name"))
    made.data["k"] = "2"
    core.replace_namespaced_config_map("a", NS, made)
    refused(409, "Conflict", core.replace_namespaced_config_map, "a", NS, made)
    # A dict is a strategic merge patch, a list a JSON patch.
    assert core.patch_namespaced_config_map("a", NS, {"data": {"l": "3"}}).data == {"k": "2", "l": "3"}
    patch = [{"op": "test", "path": "/data/k", "value": "2"}, {"op": "remove", "path": "/data/l"}]
    assert core.patch_namespaced_config_map("a", NS, patch).data == {"k": "2"}
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"p": "word"})
    assert base64.b64decode(core.create_namespaced_secret(NS, secret).data["p"]) == b"word"
    assert core.delete_namespaced_secret("s", NS)["status"] == "Success"
    dry = core.create_namespaced_config_map(NS, configmap("dry"), dry_run="All")
    assert dry.metadata.uid
    refused(404, "NotFound", core.read_namespaced_config_map, "dry", NS)


def pages():
    for number in range(7):
        core.create_namespaced_config_map(NS, configmap(f"page-{number}"))
    seen, token = [], None
    while True:
        page = core.list_namespaced_config_map(NS, limit=3, _continue=token)
        seen += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
        assert page.metadata.remaining_item_count == 9 - len(seen), page.metadata
    assert seen == ["a", "kube-root-ca.crt"] + [f"page-{number}" for number in range(7)], seen
    named = core.list_namespaced_config_map(NS, field_selector="metadata.name=page-3")
    assert [item.metadata.name for item in named.items] == ["page-3"]
    core.delete_collection_namespaced_config_map(NS, label_selector="app=py")
    assert not core.list_namespaced_config_map(NS, label_selector="app=py").items


def watches():
    revision = core.list_namespaced_config_map(NS).metadata.resource_version

    def work():
        core.create_namespaced_config_map(NS, configmap("w", n="0"))
        core.patch_namespaced_config_map("w", NS, {"data": {"n": "1"}})
        core.delete_namespaced_config_map("w", NS)

    worker = threading.Thread(target=work)
    worker.start()
    seen = []
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, NS, resource_version=revision, timeout_seconds=30):
        assert isinstance(event["object"], client.V1ConfigMap)
        if event["object"].metadata.name == "w":
            seen.append(event["type"])
        if event["type"] == "DELETED":
            watcher.stop()
    worker.join()
    assert seen == ["ADDED", "MODIFIED", "DELETED"], seen


def custom():
    names = {"plural": "snakes", "singular": "snake", "kind": "Snake"}
    schema = {"type": "object", "properties": {
        "spec": {"type": "object", "required": ["length"], "properties": {"length": {"type": "integer", "minimum": 1}}},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}
    definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "snakes.py.example.com"},
                  "spec": {"group": "py.example.com", "scope": "Namespaced", "names": names, "versions": [version]}}
    utils.create_from_dict(client.ApiClient(), definition)
    extensions = client.ApiextensionsV1Api()
    conditions = lambda: extensions.read_custom_resource_definition("snakes.py.example.com").status.conditions or []
    eventually(lambda: any(c.type == "Established" and c.status == "True" for c in conditions()))
    kind = dict(group="py.example.com", version="v1", namespace=NS, plural="snakes")
    api = client.CustomObjectsApi()
    body = {"apiVersion": "py.example.com/v1", "kind": "Snake", "metadata": {"name": "kaa"}, "spec": {"length": 9}}
    api.create_namespaced_custom_object(body=body, **kind)
    refused(422, "Invalid", api.create_namespaced_custom_object, body={**body, "metadata": {"name": "x"}, "spec": {"length": 0}}, **kind)
    api.patch_namespaced_custom_object_status(name="kaa", body={"status": {"awake": True}}, **kind)

    lazy = dynamic.DynamicClient(client.ApiClient())
    snakes = lazy.resources.get(api_version="py.example.com/v1", kind="Snake")
    kaa = snakes.get(name="kaa", namespace=NS)
    assert (kaa.spec.length, kaa.status.awake) == (9, True), kaa
    applied = lazy.server_side_apply(snakes, body={**body, "spec": {"length": 10}}, name="kaa", namespace=NS, field_manager="py", force_conflicts=True)
    assert applied.spec.length == 10
    assert [m.operation for m in applied.metadata.managedFields if m.manager == "py"] == ["Apply"], applied.metadata.managedFields
    snakes.delete(name="kaa", namespace=NS)
    extensions.delete_custom_resource_definition("snakes.py.example.com")


def sessions():
    container = client.V1Container(name="c", image=BUSYBOX, image_pull_policy="IfNotPresent", command=[
        "sh", "-c", "echo started; mkdir -p /www; echo served > /www/index.html; httpd -f -p 8080 -h /www"])
    pod = client.V1Pod(metadata=client.V1ObjectMeta(name="p"), spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=1))
    core.create_namespaced_pod(NS, pod)
    eventually(lambda: core.read_namespaced_pod("p", NS).status.phase == "Running")
    eventually(lambda: "started" in core.read_namespaced_pod_log("p", NS))
    run = lambda *words, **more: stream(core.connect_get_namespaced_pod_exec, "p", NS, command=list(words), stdout=True, stderr=True, stdin=False, tty=False, **more)
    assert run("echo", "hello").strip() == "hello"
    session = stream(core.connect_get_namespaced_pod_exec, "p", NS, command=["sh", "-c", "read line; echo got $line; echo bad >&2; exit 3"],
                     stdout=True, stderr=True, stdin=True, tty=False, _preload_content=False)
    session.write_stdin("words\n")
    session.run_forever(timeout=20)
    assert (session.read_stdout(), session.read_stderr(), session.returncode) == ("got words\n", "bad\n", 3)
    ports = portforward(core.connect_get_namespaced_pod_portforward, "p", NS, ports="8080")
    socket = ports.socket(8080)
    socket.settimeout(20)
    eventually(lambda: run("wget", "-qO-", "http://127.0.0.1:8080/").strip() == "served")
    socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while chunk := socket.recv(4096):
        answer += chunk
    assert answer.endswith(b"served\n") and ports.error(8080) is None, answer
    core.delete_namespaced_pod("p", NS, grace_period_seconds=0)


def workloads():
    labels = {"app": "web"}
    template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[
        client.V1Container(name="web", image="docker.io/coxswain/web:1", image_pull_policy="IfNotPresent")]))
    spec = client.V1DeploymentSpec(replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=template)
    apps.create_namespaced_deployment(NS, client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec))
    eventually(lambda: apps.read_namespaced_deployment("web", NS).status.ready_replicas == 1)
    scale = apps.read_namespaced_deployment_scale("web", NS)
    scale.spec.replicas = 2
    apps.replace_namespaced_deployment_scale("web", NS, scale)
    eventually(lambda: apps.read_namespaced_deployment("web", NS).status.ready_replicas == 2)
    apps.delete_namespaced_deployment("web", NS, propagation_policy="Foreground")
    eventually(lambda: not core.list_namespaced_pod(NS, label_selector="app=web").items)
    pods = client.V1PodTemplateSpec(spec=client.V1PodSpec(restart_policy="Never", containers=[
        client.V1Container(name="j", image=BUSYBOX, image_pull_policy="IfNotPresent", command=["true"])]))
    batch.create_namespaced_job(NS, client.V1Job(metadata=client.V1ObjectMeta(name="j"), spec=client.V1JobSpec(template=pods)))
    eventually(lambda: batch.read_namespaced_job("j", NS).status.succeeded == 1)


def identities():
    core.create_namespaced_service_account(NS, client.V1ServiceAccount(metadata=client.V1ObjectMeta(name="reader")))
    rbac = client.RbacAuthorizationV1Api()
    rule = client.V1PolicyRule(api_groups=[""], resources=["configmaps"], verbs=["list"])
    rbac.create_namespaced_role(NS, client.V1Role(metadata=client.V1ObjectMeta(name="reader"), rules=[rule]))
    rbac.create_namespaced_role_binding(NS, client.V1RoleBinding(
        metadata=client.V1ObjectMeta(name="reader"), role_ref=client.V1RoleRef(api_group="rbac.authorization.k8s.io", kind="Role", name="reader"),
        subjects=[client.RbacV1Subject(kind="ServiceAccount", name="reader", namespace=NS)]))
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    token = core.create_namespaced_service_account_token("reader", NS, request).status
    assert token.expiration_timestamp > datetime.datetime.now(datetime.timezone.utc)
    own = client.Configuration.get_default_copy()
    own.cert_file = own.key_file = None
    own.api_key, own.api_key_prefix = {"authorization": token.token}, {"authorization": "Bearer"}
    reader = client.CoreV1Api(client.ApiClient(own))
    reader.list_namespaced_config_map(NS)
    refused(403, "Forbidden", reader.list_namespaced_secret, NS)
    own.api_key = {"authorization": token.token[:-4] + "AAAA"}
    refused(401, "Unauthorized", client.CoreV1Api(client.ApiClient(own)).list_namespaced_config_map, NS)
    asked = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(
        resource_attributes=client.V1ResourceAttributes(namespace=NS, verb="delete", resource="pods")))
    assert client.AuthorizationV1Api().create_self_subject_access_review(asked).status.allowed


def election():
    """The client's own leader election, by the annotation of a ConfigMap."""
    led = threading.Event()
    lock = ConfigMapLock("leader", NS, "one")
    settings = electionconfig.Config(lock, lease_duration=5, renew_deadline=4, retry_period=1, onstarted_leading=led.set, onstopped_leading=lambda: None)
    threading.Thread(target=leaderelection.LeaderElection(settings).run, daemon=True).start()
    assert led.wait(20)
    annotations = core.read_namespaced_config_map("leader", NS).metadata.annotations
    assert '"holderIdentity": "one"' in annotations["control-plane.alpha.kubernetes.io/leader"], annotations


for scenario in (versions, objects, pages, watches, custom, sessions, workloads, identities, election):
    started = time.monotonic()
    scenario()
    print(f"ok {scenario.__name__} {time.monotonic() - started:.1f}s", flush=True)
# The election goes on in a thread that cannot be asked to end.
os._exit(0)
