//! Whole requests to a whole server: tokens, continue tokens, queries, media types, patches and bodies, as lines of one text:
//! method and path, headers, an empty line, the body. An internal error is a fault of the server's own.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;

use apiserver::authn::{Authenticator, SigningKey, TokenSigner};
use apiserver::authz::Authorizer;
use apiserver::object::ObjectStore;
use apiserver::proxy::Dialer;
use apiserver::request::UserInfo;
use apiserver::strategy::{Services, Settings, Strategies};
use apiserver::view::View;
use apiserver::{ApiServer, Caller, Components, Limits, admission, nonresource};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tokio::runtime::{Builder, Runtime};

struct Site {
    runtime: Runtime,
    server: ApiServer,
}

/// Requests before the server is made anew, so that its state stays small.
const REQUESTS: usize = 2_000;

thread_local! {
    static SITE: RefCell<(usize, Option<Site>)> = const { RefCell::new((0, None)) };
}

impl Site {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let server = runtime.block_on(async { server() });
        let site = Site { runtime, server };
        let namespace = "POST /api/v1/namespaces\ncontent-type: application/json\n\n{\"metadata\":{\"name\":\"n\"}}";
        site.send(namespace.as_bytes(), true);
        site
    }

    fn send(&self, data: &[u8], known: bool) {
        let Some(request) = request(data) else { return };
        let caller = match known {
            true => Caller::Known(Arc::new(UserInfo::new("tester", &["system:masters"]))),
            false => Caller::Remote { peer: None, address: None },
        };
        self.runtime.block_on(async {
            let response = self.server.handle(request, caller).await;
            let code = response.status().as_u16();
            // A watch goes on until it is dropped.
            let body = tokio::time::timeout(std::time::Duration::from_millis(5), response.into_body().collect()).await;
            if code == 500 {
                let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
                // As upstream, which answers an applied configuration that does not fit its schema with a 500 that has no reason.
                let status: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                assert!(status["reason"] == "" && status["message"] != "", "{}", String::from_utf8_lossy(&body));
            }
        });
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
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let components = Components {
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
            event_ttl: None,
            serving_ca: String::new(),
        },
        dialer: Dialer::new(&tls),
        version: nonresource::Version { git_version: "v1.37.0".into(), git_commit: "".into(), build_date: "".into() },
    };
    ApiServer::with_limits(components, Limits::default())
}

fn request(data: &[u8]) -> Option<Request<Full<bytes::Bytes>>> {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let body = data.get(end + 2..).unwrap_or_default().to_vec();
    let mut lines = std::str::from_utf8(&data[..end]).ok()?.lines();
    let (method, path) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    request.body(Full::from(body)).ok()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    SITE.with_borrow_mut(|(count, site)| {
        if *count % REQUESTS == 0 {
            *site = None;
        }
        *count += 1;
        // One in four comes without a known caller: with a token, or anonymous.
        site.get_or_insert_with(Site::new).send(rest, first % 4 != 0);
    });
});
