//! Makes the API server out of its parts, and starts the control plane's components on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use apiserver::authz::{Authorizer, aggregate};
use apiserver::object::ObjectStore;
use apiserver::proxy::Dialer;
use apiserver::request::UserInfo;
use apiserver::strategy::{Services, Settings, Strategies};
use apiserver::view::View;
use apiserver::{ApiServer, Components, Startup, admission, bootstrap, nonresource};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Server;
use crate::pki::{ClusterSigner, ExpiryLater, Pki, Rotating};
use crate::process::Process;
use crate::{GIT_VERSION, join};

/// As whom the process fills its caches: the controller manager may list everything that is watched here.
pub const READER: &str = "system:kube-controller-manager";

/// At the end, audit events that wait get this long to be sent.
const AUDIT_WITHIN: Duration = Duration::from_secs(20);

/// Builds the API server. Nothing is listening yet.
/// `token` is the secret with which agents join.
pub fn build(config: &Server, pki: &Pki, token: &str, store: ObjectStore) -> Result<ApiServer> {
    let view = View::new(store.clone());
    let authorizer = Authorizer::new(view.clone());
    let issuer = format!("https://kubernetes.default.svc.{}", config.cluster.cluster_domain);
    let signer = Arc::new(config.authentication.signer(issuer, &pki.service_account_key)?);
    let joining = UserInfo::new("system:bootstrap:join", &["system:bootstrappers"]);
    let authenticator = config.authentication.authenticator(view, signer.clone(), (token.to_owned(), joining))?;
    let authenticator = Arc::new(authenticator);
    let services = Services { authorizer: authorizer.clone(), authenticator: authenticator.clone(), signer };
    let components = Components {
        store,
        table: apimachinery::resource::builtin().clone(),
        authenticator,
        admission: admission::default_chain(authorizer.clone()),
        authorizer,
        strategies: Strategies::new(services),
        settings: Settings {
            service_cidr: config.cluster.service_cidr.clone(),
            node_ports: (30000, 32767),
            advertise: advertised(config).to_string(),
            event_ttl: config.event_ttl,
            serving_ca: pki.server_ca.certificate.clone(),
        },
        dialer: Dialer::new(&kubelet_client_tls(pki)?),
        version: nonresource::Version {
            git_version: GIT_VERSION.to_owned(),
            git_commit: env!("COXSWAIN_COMMIT").to_owned(),
            build_date: env!("COXSWAIN_BUILD_DATE").to_owned(),
        },
    };
    let server = ApiServer::new(components);
    server.aggregator.set_identity(pki.front_proxy.clone());
    if let Some(auditor) = config.audit.auditor()? {
        server.audit.get_or_init(|| auditor);
    }
    Ok(server)
}

/// Waits for events that have not been kept yet, after the last request; a webhook that does not answer is not waited for.
pub async fn finish_audit(api: &ApiServer) {
    let Some(auditor) = api.audit.get() else { return };
    if tokio::time::timeout(AUDIT_WITHIN, auditor.shutdown()).await.is_err() {
        tracing::warn!("not all audit events could be sent in time");
    }
}

/// The address at which others reach this server.
pub fn advertised(config: &Server) -> SocketAddr {
    SocketAddr::new(config.host.node_ip, config.port)
}

/// The API server's half of TLS. Its authenticator looks at the validity of certificates at each request.
pub fn api_tls(pki: &Pki) -> Result<Arc<rustls::ServerConfig>> {
    tls(pki.api.clone(), Arc::new(ExpiryLater(client_verifier(pki)?)))
}

/// The half of TLS of the kubelet beside this server.
pub fn kubelet_tls(pki: &Pki) -> Result<Arc<rustls::ServerConfig>> {
    tls(pki.kubelet.clone(), client_verifier(pki)?)
}

/// Takes, but does not demand, client certificates of our authority.
fn client_verifier(pki: &Pki) -> Result<Arc<dyn ClientCertVerifier>> {
    Ok(WebPkiClientVerifier::builder(pki.client_ca.roots()?).allow_unauthenticated().build()?)
}

fn tls(certificate: Arc<Rotating>, clients: Arc<dyn ClientCertVerifier>) -> Result<Arc<rustls::ServerConfig>> {
    let mut tls = rustls::ServerConfig::builder().with_client_cert_verifier(clients).with_cert_resolver(certificate);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// How the API server speaks to kubelets.
pub fn kubelet_client_tls(pki: &Pki) -> Result<rustls::ClientConfig> {
    Ok(rustls::ClientConfig::builder()
        .with_root_certificates(pki.server_ca.roots()?)
        .with_client_cert_resolver(pki.api_to_kubelet.clone()))
}

/// Binds the API's port.
pub async fn listen(config: &Server) -> Result<TcpListener> {
    let address = SocketAddr::new(config.host.bind_address, config.port);
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Creates what every cluster has.
pub async fn bootstrap(config: &Server, pki: &Pki, api: &ApiServer) -> Result<()> {
    let startup = Startup {
        bootstrap: bootstrap::Settings {
            service_cidrs: vec![config.cluster.service_cidr.clone()],
            client_ca: pki.client_ca.certificate.clone(),
            request_header_ca: pki.front_proxy_ca.certificate.clone(),
        },
        address: (!config.host.node_ip.is_loopback()).then(|| config.host.node_ip.to_string()),
        port: config.port,
        service_ip: config.service_ip.to_string(),
        cluster_dns: config.enabled("dns").then(|| config.cluster.cluster_dns.to_string()),
        objects: vec![join::facts(&config.cluster, &pki.client_ca.certificate)],
    };
    apiserver::start(api, &startup).await.map_err(|e| anyhow::anyhow!("cannot create the cluster's first objects: {e}"))
}

/// Starts controllers and scheduler.
pub fn start(config: &Server, pki: &Pki, api: &ApiServer, process: &Process) {
    let view = api.view.clone();
    let roles = process.clients.client_as("system:apiserver", &["system:masters"]);
    process.tasks.spawn(aggregate::keep_aggregated(view, process.shutdown.clone(), move |role| {
        let roles = roles.clone();
        async move { write_role(roles, role).await }
    }));
    let address = config.host.node_ip;
    if config.datastore.is_shared() && !address.is_loopback() {
        let shutdown = process.shutdown.clone();
        process.tasks.spawn(apiserver::peers::keep(api.clone(), address.to_string(), config.port, shutdown));
    }
    if config.enabled("controllers") {
        let context = process.context("system:kube-controller-manager", &[]);
        let settings = controllers::Config {
            root_ca: pki.server_ca.certificate.clone(),
            cluster_cidrs: vec![config.cluster.cluster_cidr.clone()],
            signer: Some(Arc::new(ClusterSigner::new(pki))),
            ..controllers::Config::default()
        };
        lead(config, process, "kube-controller-manager", context, move |context| {
            controllers::run(context, settings.clone())
        });
    }
    if config.enabled("scheduler") {
        let context = process.context("system:kube-scheduler", &[]);
        lead(config, process, "kube-scheduler", context, |context| {
            scheduler::run(context, scheduler::Config::default())
        });
    }
}

/// Runs `work` in one server of the cluster at a time, by upstream's Lease. Where there can be no other server it runs at once.
fn lead<F, Fut>(config: &Server, process: &Process, lease: &str, context: client::Context, work: F)
where
    F: Fn(client::Context) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    if !config.datastore.is_shared() {
        process.tasks.spawn(work(context));
        return;
    }
    let identity = format!("{}_{:016x}", config.host.node_name, rand::random::<u64>());
    let election = client::Election::new(lease, &identity);
    let (candidate, shutdown) = (context.client.clone(), process.shutdown.clone());
    let reader = process.clients.client_as(READER, &[]);
    // Handlers stay with their informer, so who leads a second time does so on caches that end with the term. Losing the lease is
    // rare enough that all other terms are the first, which shares the caches of the process.
    let mut terms = 0;
    process.tasks.spawn(client::leader::campaign(candidate, election, shutdown, move |lost: CancellationToken| {
        terms += 1;
        let informers = match terms {
            1 => context.informers.clone(),
            _ => client::Informers::new(reader.clone(), lost.clone()),
        };
        work(client::Context { informers, shutdown: lost, ..context.clone() })
    }));
}

async fn write_role(client: kube::Client, role: serde_json::Value) {
    use k8s_openapi::api::rbac::v1::ClusterRole;
    let Ok(role) = serde_json::from_value::<ClusterRole>(role) else { return };
    let name = role.metadata.name.clone().unwrap_or_default();
    let api: kube::Api<ClusterRole> = kube::Api::all(client);
    if let Err(error) = api.replace(&name, &kube::api::PostParams::default(), &role).await {
        tracing::debug!(%error, role = name, "aggregated role not written, its change will be seen again");
    }
}
