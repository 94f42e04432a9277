//! Identity and policy through the whole server: bootstrap, certificates aside, tokens, roles, admission.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use apiserver::authn::{Authenticator, SigningKey, TokenSigner};
use apiserver::authz::{Authorizer, aggregate};
use apiserver::object::ObjectStore;
use apiserver::proxy::Dialer;
use apiserver::request::UserInfo;
use apiserver::strategy::{Services, Settings, Strategies};
use apiserver::view::View;
use apiserver::{ApiServer, Caller, Components, Startup, admission, bootstrap, nonresource};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

fn server(store: &ObjectStore) -> ApiServer {
    let view = View::new(store.clone());
    let authorizer = Authorizer::new(view.clone());
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let signer = Arc::new(TokenSigner::new("https://kubernetes.default.svc.cluster.local", key));
    let authenticator = Arc::new(Authenticator::new(view, signer.clone(), []));
    let services = Services { authorizer: authorizer.clone(), authenticator: authenticator.clone(), signer };
    let tls =
        rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    ApiServer::new(Components {
        store: store.clone(),
        table: apimachinery::resource::builtin().clone(),
        authenticator,
        admission: admission::default_chain(authorizer.clone()),
        authorizer,
        strategies: Strategies::new(services),
        settings: Settings {
            service_cidr: "10.43.0.0/16".to_owned(),
            node_ports: (30000, 32767),
            advertise: "127.0.0.1:6443".to_owned(),
            event_ttl: Some(std::time::Duration::from_secs(3600)),
            serving_ca: String::new(),
        },
        dialer: Dialer::new(&tls),
        version: nonresource::Version { git_version: "v1.37.0".into(), git_commit: "".into(), build_date: "".into() },
    })
}

async fn start(server: &ApiServer) {
    let startup = Startup {
        bootstrap: bootstrap::Settings {
            service_cidrs: vec!["10.43.0.0/16".to_owned()],
            client_ca: "pem".to_owned(),
            request_header_ca: String::new(),
        },
        address: None,
        port: 6443,
        service_ip: "10.43.0.1".to_owned(),
        cluster_dns: Some("10.43.0.10".to_owned()),
        objects: Vec::new(),
    };
    apiserver::start(server, &startup).await.unwrap();
}

async fn send(server: &ApiServer, caller: Caller, token: &str, line: &str, body: Value) -> (u16, Value) {
    let (method, path) = line.split_once(' ').unwrap();
    let mut request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let response = server.handle(request.body(Full::from(body)).unwrap(), caller).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn as_user(server: &ApiServer, user: &str, groups: &[&str], line: &str, body: Value) -> (u16, Value) {
    send(server, Caller::Known(Arc::new(UserInfo::new(user, groups))), "", line, body).await
}

async fn as_admin(server: &ApiServer, line: &str, body: Value) -> Value {
    let (code, answer) = as_user(server, "admin", &["system:masters"], line, body).await;
    assert!(code < 300, "{line}: {answer}");
    answer
}

async fn remote(server: &ApiServer, token: &str, line: &str) -> (u16, Value) {
    send(server, Caller::Remote { peer: None, address: None }, token, line, Value::Null).await
}

fn account() -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

#[tokio::test]
async fn a_second_start_changes_nothing_of_the_defaults() {
    let store = ObjectStore::in_memory(store::Options::default());
    let first = server(&store);
    start(&first).await;
    assert_eq!(aggregate::aggregate(&first.view), Vec::<Value>::new());
    let versions = |server: &ApiServer| -> Vec<u64> {
        let prefixes = [
            "clusterroles",
            "clusterrolebindings",
            "roles",
            "rolebindings",
            "flowschemas",
            "prioritylevelconfigurations",
            "priorityclasses",
            "servicecidrs",
            "namespaces",
            "configmaps",
        ];
        prefixes.iter().flat_map(|prefix| server.view.list(prefix, "")).map(|entry| entry.mod_revision).collect()
    };
    let before = versions(&first);
    assert!(before.len() > 150);
    let second = server(&store);
    start(&second).await;
    assert_eq!(versions(&second), before);
}

#[tokio::test]
async fn nobody_sees_health_and_version_and_nothing_else() {
    let server = server(&ObjectStore::in_memory(store::Options::default()));
    start(&server).await;
    assert_eq!(remote(&server, "", "GET /version").await.0, 200);
    assert_eq!(remote(&server, "", "GET /readyz").await.0, 200);
    let (code, status) = remote(&server, "", "GET /api/v1/pods").await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        r#"pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" at the cluster scope"#
    );
    let (code, status) = remote(&server, "wrong", "GET /api/v1/pods").await;
    assert_eq!((code, &status["message"]), (401, &json!("Unauthorized")));
}

#[tokio::test]
async fn a_pods_token_is_what_its_roles_make_it() {
    let server = server(&ObjectStore::in_memory(store::Options::default()));
    start(&server).await;
    as_admin(&server, "POST /api/v1/namespaces/default/serviceaccounts", account()).await;
    let made = as_admin(&server, "POST /api/v1/namespaces/default/pods", pod("p")).await;
    let spec = &made["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(spec["priority"], 0);

    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": made["metadata"]["uid"]});
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [], "boundObjectRef": bound}});
    let answer = as_admin(&server, "POST /api/v1/namespaces/default/serviceaccounts/default/token", request).await;
    let token = answer["status"]["token"].as_str().unwrap();
    let (code, status) = remote(&server, token, "GET /api/v1/namespaces/default/pods").await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        r#"pods is forbidden: User "system:serviceaccount:default:default" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]});
    as_admin(&server, "POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", role).await;
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]});
    as_admin(&server, "POST /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", binding).await;
    assert_eq!(remote(&server, token, "GET /api/v1/namespaces/default/pods").await.0, 200);
    as_admin(&server, "DELETE /api/v1/namespaces/default/pods/p?gracePeriodSeconds=0", Value::Null).await;
    assert_eq!(remote(&server, token, "GET /api/v1/namespaces/default/pods").await.0, 401);
}

#[tokio::test]
async fn refusals_of_admission_reach_the_client() {
    let server = server(&ObjectStore::in_memory(store::Options::default()));
    start(&server).await;
    let admin = ("admin", &["system:masters"][..]);
    let refused = async |line: &str, body: Value| {
        let (code, status) = as_user(&server, admin.0, admin.1, line, body).await;
        (code, status["message"].as_str().unwrap_or_default().to_owned())
    };
    let (code, message) = refused("POST /api/v1/namespaces/gone/pods", pod("p")).await;
    assert_eq!((code, message.as_str()), (404, r#"namespaces "gone" not found"#));
    let (code, message) = refused("DELETE /api/v1/namespaces/default", Value::Null).await;
    assert_eq!(
        (code, message.as_str()),
        (403, r#"namespaces "default" is forbidden: this namespace may not be deleted"#)
    );
    let mut other = pod("p");
    other["spec"]["serviceAccountName"] = json!("bot");
    let (code, message) = refused("POST /api/v1/namespaces/default/pods", other).await;
    assert_eq!(code, 403);
    assert!(message.contains(r#"serviceaccount "bot" not found"#), "{message}");
}

#[tokio::test]
async fn a_node_keeps_to_its_own_objects() {
    let server = server(&ObjectStore::in_memory(store::Options::default()));
    start(&server).await;
    let node = async |line: &str, body: Value| {
        as_user(&server, "system:node:n1", &["system:nodes", "system:authenticated"], line, body).await
    };
    let object = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    let (code, made) = node("POST /api/v1/nodes", object("n1")).await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    assert_eq!(node("POST /api/v1/nodes", object("n2")).await.0, 403);
    assert_eq!(node("GET /api/v1/nodes/n1", Value::Null).await.0, 200);
    assert_eq!(node("GET /api/v1/nodes?fieldSelector=metadata.name%3Dn1", Value::Null).await.0, 200);
    // An agent's kube-proxy and pod network are its node, and need all of them.
    assert_eq!(node("GET /api/v1/nodes", Value::Null).await.0, 200);
    assert_eq!(node("GET /api/v1/pods?fieldSelector=spec.nodeName%3Dn1", Value::Null).await.0, 200);
    assert_eq!(node("GET /api/v1/pods", Value::Null).await.0, 403);
    let lease = |name: &str| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
        "spec": {"holderIdentity": name}})
    };
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert_eq!(node(&format!("POST {leases}"), lease("n1")).await.0, 201);
    assert_eq!(node(&format!("POST {leases}"), lease("n2")).await.0, 403);
}

#[tokio::test]
async fn a_pod_waits_for_the_account_of_its_new_namespace() {
    let server = server(&ObjectStore::in_memory(store::Options::default()));
    start(&server).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new"}});
    as_admin(&server, "POST /api/v1/namespaces", namespace).await;
    let create = as_admin(&server, "POST /api/v1/namespaces/new/pods", pod("p"));
    let controller = async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        as_admin(&server, "POST /api/v1/namespaces/new/serviceaccounts", account()).await
    };
    let (made, _) = tokio::join!(create, controller);
    assert_eq!(made["spec"]["serviceAccountName"], "default");
}

/// Rights in a namespace, on one verb, or on updates must not reach further than they say.
#[tokio::test]
async fn paths_and_verbs_do_not_stretch_rights() {
    let store = ObjectStore::in_memory(store::Options::default());
    let server = server(&store);
    start(&server).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    as_admin(&server, "POST /api/v1/namespaces", json!({"metadata": {"name": "a"}})).await;
    let binding = json!({"metadata": {"name": "all"}, "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
    as_admin(&server, &format!("POST {rbac}/namespaces/a/rolebindings"), binding).await;
    as_admin(&server, "POST /api/v1/nodes", json!({"metadata": {"name": "n1"}})).await;
    for line in [
        "GET /api/v1/namespaces/a/nodes/n1",
        "DELETE /api/v1/namespaces/a/nodes/n1",
        "DELETE /api/v1/namespaces/a/namespaces/default",
        "GET /api/v1/namespaces/a/nodes/n1/proxy/pods",
        "PATCH /api/v1/pods/a%2Fx/ephemeralcontainers",
    ] {
        let (code, answer) = as_user(&server, "eve", &[], line, Value::Null).await;
        assert!(matches!(code, 403 | 404), "{line}: {answer}");
    }
    let (code, _) = as_user(&server, "eve", &[], "GET /api/v1/namespaces/a", Value::Null).await;
    assert_eq!(code, 200);

    let rules =
        json!([{"verbs": ["update", "patch", "watch"], "apiGroups": ["", "coordination.k8s.io"], "resources": ["*"]}]);
    as_admin(
        &server,
        &format!("POST {rbac}/namespaces/a/roles"),
        json!({"metadata": {"name": "writer"}, "rules": rules}),
    )
    .await;
    let binding = json!({"metadata": {"name": "writers"}, "subjects": [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "writer"}});
    as_admin(&server, &format!("POST {rbac}/namespaces/a/rolebindings"), binding).await;
    let lease = json!({"metadata": {"name": "l"}, "spec": {}});
    let line = "PUT /apis/coordination.k8s.io/v1/namespaces/a/leases/l";
    let (code, answer) = as_user(&server, "bob", &[], line, lease).await;
    assert_eq!(code, 403, "an update must not create: {answer}");
    let (code, _) = as_user(&server, "bob", &[], "GET /api/v1/namespaces/a/pods/x/log?watch=true", Value::Null).await;
    assert_eq!(code, 403);
}

#[tokio::test]
async fn numbers_that_clients_make_up_do_no_harm() {
    let store = ObjectStore::in_memory(store::Options::default());
    let server = server(&store);
    start(&server).await;
    as_admin(&server, "POST /api/v1/namespaces/default/serviceaccounts", account()).await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    let deployment =
        json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    as_admin(&server, "POST /apis/apps/v1/namespaces/default/deployments", deployment).await;
    for replicas in [json!(3_000_000_000_u64), json!("5"), json!(1.5)] {
        let scale = json!({"metadata": {"name": "d"}, "spec": {"replicas": replicas}});
        let line = "PUT /apis/apps/v1/namespaces/default/deployments/d/scale";
        let (code, answer) = as_user(&server, "admin", &["system:masters"], line, scale).await;
        assert_eq!(code, 400, "{answer}");
    }
    as_admin(&server, "POST /api/v1/namespaces/default/pods", pod("p")).await;
    let options = json!({"gracePeriodSeconds": i64::MAX});
    let line = "DELETE /api/v1/namespaces/default/pods/p";
    let (code, _) = as_user(&server, "admin", &["system:masters"], line, options).await;
    assert!(code < 500);
}

/// Whatever is created in a namespace comes before the mark of its deletion: the one who empties it then finds everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_created_in_a_namespace_that_is_going() {
    let store = ObjectStore::in_memory(store::Options::default());
    let server = server(&store);
    start(&server).await;
    for round in 0..150 {
        let namespace = format!("n{round}");
        as_admin(&server, "POST /api/v1/namespaces", json!({"metadata": {"name": namespace}})).await;
        let creates: Vec<_> = (0..16)
            .map(|number| {
                let (server, namespace) = (server.clone(), namespace.clone());
                tokio::spawn(async move {
                    let line = format!("POST /api/v1/namespaces/{namespace}/configmaps");
                    let body = json!({"metadata": {"name": format!("c{number}")}});
                    let (code, answer) = as_user(&server, "admin", &["system:masters"], &line, body).await;
                    assert!(matches!(code, 201 | 403 | 404), "{answer}");
                })
            })
            .collect();
        let marked = as_admin(&server, &format!("DELETE /api/v1/namespaces/{namespace}"), Value::Null).await;
        let mark: u64 = marked["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        for create in creates {
            create.await.unwrap();
        }
        for entry in server.view.list("configmaps", &namespace) {
            assert!(
                entry.create_revision < mark,
                "created at {} in a namespace marked at {mark}",
                entry.create_revision
            );
        }
    }
}
