//! A control plane in this process: the real API server over memory, the controllers, and nodes that run nothing.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::authn::{Authenticator, SigningKey, TokenSigner};
use apiserver::authz::Authorizer;
use apiserver::http::inprocess::InProcess;
use apiserver::object::ObjectStore;
use apiserver::proxy::Dialer;
use apiserver::request::UserInfo;
use apiserver::strategy::{Services, Settings, Strategies};
use apiserver::view::View;
use apiserver::{ApiServer, Components, Startup, admission, bootstrap, nonresource};
use client::{Change, ClientFactory, Context, Informers, Next, Queue};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

struct Clients(ApiServer);

impl ClientFactory for Clients {
    fn client_as(&self, user: &str, groups: &[&str]) -> kube::Client {
        kube::Client::new(InProcess::new(self.0.clone(), UserInfo::new(user, groups)), "default")
    }
}

pub struct Cluster {
    pub client: kube::Client,
    clients: Arc<dyn ClientFactory>,
    shutdown: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn server() -> ApiServer {
    let store = ObjectStore::in_memory(store::Options::default());
    let view = View::new(store.clone());
    let authorizer = Authorizer::new(view.clone());
    let key = SigningKey::from_pkcs8(&SigningKey::generate().expect("a key")).expect("a key");
    let signer = Arc::new(TokenSigner::new("https://kubernetes.default.svc.cluster.local", key));
    let authenticator = Arc::new(Authenticator::new(view, signer.clone(), []));
    let services = Services { authorizer: authorizer.clone(), authenticator: authenticator.clone(), signer };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    ApiServer::new(Components {
        store,
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

impl Cluster {
    /// Starts server, controllers and one ready node `n1` on which every pod runs at once. The namespace `test` exists.
    pub async fn start(config: controllers::Config) -> Cluster {
        if std::env::var_os("RUST_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_default_env();
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let server = server();
        let startup = Startup {
            bootstrap: bootstrap::Settings {
                service_cidrs: vec!["10.43.0.0/16".to_owned()],
                client_ca: "pem".to_owned(),
                request_header_ca: String::new(),
            },
            address: None,
            port: 6443,
            service_ip: "10.43.0.1".to_owned(),
            cluster_dns: None,
            objects: Vec::new(),
        };
        apiserver::start(&server, &startup).await.expect("bootstrapped");
        let clients = Arc::new(Clients(server));
        let shutdown = CancellationToken::new();
        let reader = clients.client_as("system:kube-controller-manager", &[]);
        let context = Context {
            client: reader.clone(),
            clients: clients.clone(),
            informers: Informers::new(reader, shutdown.clone()),
            shutdown: shutdown.clone(),
        };
        let client = clients.client_as("admin", &["system:masters"]);
        let cluster = Cluster { client, clients, shutdown };
        tokio::spawn(hollow_kubelet(cluster.client.clone(), context.clone()));
        tokio::spawn(controllers::run(context, config));
        cluster.add_node("n1").await;
        let namespace: Namespace = object(json!({ "metadata": { "name": "test" } }));
        Api::all(cluster.client.clone()).create(&PostParams::default(), &namespace).await.expect("created");
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = cluster.api();
        eventually("the default service account", || async { accounts.get_opt("default").await.ok()? }).await;
        cluster
    }

    /// A client that is somebody else than the administrator.
    pub fn client_as(&self, user: &str, groups: &[&str]) -> kube::Client {
        self.clients.client_as(user, groups)
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "test")
    }

    pub async fn create<K>(&self, value: Value) -> K
    where
        K: client::Kind + serde::Serialize + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    {
        self.api::<K>().create(&PostParams::default(), &object(value)).await.expect("created")
    }

    pub async fn merge<K>(&self, name: &str, value: Value) -> K
    where
        K: client::Kind + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(value)).await.expect("patched")
    }

    pub async fn add_node(&self, name: &str) {
        let node: Node =
            object(json!({ "metadata": { "name": name, "labels": { "topology.kubernetes.io/zone": "z1" } } }));
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.create(&PostParams::default(), &node).await.expect("created");
        self.node_ready(name).await;
    }

    /// What a kubelet's status report does.
    pub async fn node_ready(&self, name: &str) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let now = k8s_openapi::jiff::Timestamp::now();
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
        let condition = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady",
            "lastHeartbeatTime": at, "lastTransitionTime": at });
        let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        nodes.patch_status(name, &PatchParams::default(), &patch).await.expect("patched");
    }

    /// The pods of a label `app`, by name.
    pub async fn pods(&self, app: &str) -> Vec<Pod> {
        let params = ListParams::default().labels(&format!("app={app}"));
        let mut pods = self.api::<Pod>().list(&params).await.expect("listed").items;
        pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        pods
    }

    /// Reason and message of the events about an object, oldest first.
    /// The events about an object, once `event` is among them: they are written behind everything else.
    pub async fn told(&self, about: &str, event: &str) -> Vec<String> {
        eventually(event, || async {
            let events = self.events(about).await;
            events.iter().any(|told| told == event).then_some(events)
        })
        .await
    }

    pub async fn events(&self, about: &str) -> Vec<String> {
        let events: Api<k8s_openapi::api::core::v1::Event> = self.api();
        let mut events = events.list(&ListParams::default()).await.expect("listed").items;
        events.retain(|event| event.involved_object.name.as_deref() == Some(about));
        events.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let text = |event: &k8s_openapi::api::core::v1::Event| {
            let (reason, message) = (event.reason.as_deref(), event.message.as_deref());
            format!("{}: {}", reason.unwrap_or_default(), message.unwrap_or_default())
        };
        events.iter().map(text).collect()
    }
}

pub fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a valid object")
}

/// Polls until `probe` gives something; panics with `what` after half a minute (machines may be busy).
pub async fn eventually<T, Fut>(what: &str, probe: impl Fn() -> Fut) -> T
where
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Binds pods to the node that they are pinned to, else to `n1`, reports them ready unless they are labelled `unready`, or ended as the label `finish` says, and lets go of deleted ones.
async fn hollow_kubelet(client: kube::Client, context: Context) {
    let pods = context.informers.of::<Pod>();
    let queue: Queue<client::ObjectKey> = Queue::default();
    let feed = queue.clone();
    pods.on_change(move |change: Change<'_, Pod>| {
        if let Change::Applied { new, .. } = change {
            feed.add(client::key_of(&**new));
        }
    });
    let state = Arc::new((client, pods));
    client::run_workers("hollow-kubelet", queue, 4, context.shutdown, move |key| {
        let state = state.clone();
        async move {
            let (client, pods) = &*state;
            let Some(pod) = pods.get(&key.0, &key.1) else { return Ok(Next::Wait) };
            let api: Api<Pod> = Api::namespaced(client.clone(), &key.0);
            step(&api, &pod, &key.1).await.map(|()| Next::Wait)
        }
    })
    .await;
}

async fn step(api: &Api<Pod>, pod: &Pod, name: &str) -> Result<(), kube::Error> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if node.is_empty() {
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let target = pinned(pod).unwrap_or("n1");
        let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name }, "target": { "kind": "Node", "name": target } });
        api.create_subresource::<_, Value>("binding", name, &PostParams::default(), &binding).await?;
        return Ok(());
    }
    if pod.metadata.deletion_timestamp.is_some() {
        client::found(api.delete(name, &DeleteParams::default().grace_period(0)).await)?;
        return Ok(());
    }
    let label = |label: &str| pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(label));
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Ok(());
    }
    if let Some(phase) = pod.metadata.labels.as_ref().and_then(|labels| labels.get("finish")) {
        client::found(end_pod(api, name, phase, i32::from(phase != "Succeeded")).await)?;
        return Ok(());
    }
    let (ready, ip) = (!label("unready"), ip_of(name));
    let status = pod.status.clone().unwrap_or_default();
    let is = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && (c.status == "True") == ready);
    if is && status.pod_ip.is_some() {
        return Ok(());
    }
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now());
    let condition =
        json!({ "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": now });
    let status = json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": [condition] });
    let patch = Patch::Strategic(json!({ "status": status }));
    client::found(api.patch_status(name, &PatchParams::default(), &patch).await)?;
    Ok(())
}

/// What a kubelet reports of a pod whose only container, `c`, has ended.
pub async fn end_pod(api: &Api<Pod>, name: &str, phase: &str, exit_code: i32) -> Result<Pod, kube::Error> {
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now());
    let terminated = json!({ "exitCode": exit_code, "startedAt": now, "finishedAt": now });
    let container = json!({ "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": { "terminated": terminated } });
    let unready = json!({ "type": "Ready", "status": "False", "lastTransitionTime": now });
    let status = json!({ "phase": phase, "conditions": [unready], "containerStatuses": [container] });
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(json!({ "status": status }))).await
}

fn pinned(pod: &Pod) -> Option<&str> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let term = affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms.first()?;
    term.match_fields.as_ref()?.first()?.values.as_ref()?.first().map(String::as_str)
}

/// Any address that differs from pod to pod.
fn ip_of(name: &str) -> String {
    let hash = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    format!("10.42.{}.{}", hash >> 8 & 0xff, hash & 0xff)
}
