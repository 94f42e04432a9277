//! The webhook that events are posted to, whose address and our identity to it are in a kubeconfig (`--audit-webhook-config-file`).
//!
//! Any failure is tried again: there is hardly one that makes an event not worth keeping.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::schema::decode::from_yaml;
use apimachinery::{Value, meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Limited};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::event::{self, Event};
use crate::backend::{HttpClient, Trust, any_scheme_client, client_config, words};
use crate::http::respond;

/// Of one request, as upstream's `defaultRequestTimeout`.
const TIMEOUT: Duration = Duration::from_secs(30);
/// `webhook.DefaultRetryBackoffWithInitialDelay`: tries, how much longer each pause is than the last, and what chance adds.
const TRIES: u32 = 5;
const GROWTH: f64 = 1.5;
const JITTER: f64 = 0.2;
/// The answer's body says nothing; it is read so that the connection can be used again.
const ANSWER_BYTES_MAX: usize = 1 << 20;

pub struct Webhook {
    client: HttpClient,
    url: String,
    authorization: Option<HeaderValue>,
    first_pause: Duration,
}

impl Webhook {
    /// Cluster and user of the file's current context. Relative paths in it are below its folder.
    pub fn from_kubeconfig(file: &Path, first_pause: Duration) -> Result<Self, String> {
        let fail = |why: String| format!("{}: {why}", file.display());
        let text = std::fs::read(file).map_err(|error| fail(error.to_string()))?;
        let config = from_yaml(&text).map_err(|error| fail(error.to_string()))?.value;
        Self::of(&config, file.parent().unwrap_or(Path::new("/")), first_pause).map_err(fail)
    }

    fn of(config: &Value, folder: &Path, first_pause: Duration) -> Result<Self, String> {
        let context = named(config, "contexts", "context", meta::str_at(config, &["current-context"]))?;
        let cluster = named(config, "clusters", "cluster", meta::str_at(context, &["cluster"]))?;
        let user = match meta::str_at(context, &["user"]) {
            "" => &Value::Null,
            name => named(config, "users", "user", name)?,
        };
        let beyond = [(cluster, "proxy-url"), (cluster, "tls-server-name"), (user, "exec"), (user, "auth-provider")];
        for (part, key) in beyond {
            if part.get(key).is_some_and(|value| !value.is_null() && value != "") {
                return Err(format!("{key} is not supported here"));
            }
        }
        let server = meta::str_at(cluster, &["server"]);
        if !server.starts_with("https://") && !server.starts_with("http://") {
            return Err(format!("server {server:?}: not an http or https URL"));
        }
        let separator = if server.contains('?') { '&' } else { '?' };
        let url = format!("{server}{separator}timeout={}s", TIMEOUT.as_secs());
        let authority = content(cluster, "certificate-authority", folder)?;
        let trust = match &authority {
            _ if cluster["insecure-skip-tls-verify"] == true => Trust::Anyone,
            Some(pem) => Trust::Bundle(pem),
            None => Trust::Host,
        };
        let certificate = content(user, "client-certificate", folder)?;
        let key = content(user, "client-key", folder)?;
        let identity = certificate.zip(key).map(|(certificate, key)| identity(&certificate, &key)).transpose()?;
        let client = any_scheme_client(client_config(trust, identity)?);
        Ok(Webhook { client, url, authorization: authorization(user, folder)?, first_pause })
    }

    /// Posts all of `events` in one request, again after failures. The error is that of the last try.
    pub async fn post(&self, events: &[Arc<Event>]) -> Result<(), String> {
        let body = event::list(events).map_err(|error| error.to_string())?;
        let mut pause = self.first_pause;
        for _ in 1..TRIES {
            match self.once(body.clone()).await {
                Ok(()) => return Ok(()),
                Err(why) => tracing::debug!(why, "audit webhook failed, and is asked again"),
            }
            tokio::time::sleep(pause.mul_f64(1.0 + JITTER * rand::random::<f64>())).await;
            pause = pause.mul_f64(GROWTH);
        }
        self.once(body).await
    }

    async fn once(&self, body: String) -> Result<(), String> {
        let mut request = Request::post(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*");
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(respond::full(body)).map_err(|error| error.to_string())?;
        let failed = |why: String| format!("Post {:?}: {why}", self.url);
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| failed(words(&error)))?;
            let code = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            body.map_err(|error| failed(words(&*error)))?;
            if code.is_success() {
                Ok(())
            } else {
                Err(failed(format!("the server responded with the status code {code}")))
            }
        };
        let late = |_| failed("context deadline exceeded".to_owned());
        tokio::time::timeout(TIMEOUT, exchange).await.map_err(late)?
    }
}

/// `items[name].part` of a kubeconfig.
fn named<'a>(config: &'a Value, items: &str, part: &str, name: &str) -> Result<&'a Value, String> {
    let list = config.get(items).and_then(Value::as_array).into_iter().flatten();
    let found = list.filter(|item| meta::str_at(item, &["name"]) == name).find_map(|item| item.get(part));
    found.ok_or_else(|| format!("{part} {name:?} does not exist"))
}

/// What stands in `<key>-data`, or in the file that `key` names.
fn content(part: &Value, key: &str, folder: &Path) -> Result<Option<Vec<u8>>, String> {
    let data = meta::str_at(part, &[&format!("{key}-data")]);
    if !data.is_empty() {
        return STANDARD.decode(data).map(Some).map_err(|error| format!("{key}-data: {error}"));
    }
    match meta::str_at(part, &[key]) {
        "" => Ok(None),
        file => std::fs::read(folder.join(file)).map(Some).map_err(|error| format!("{key} {file}: {error}")),
    }
}

fn identity(certificate: &[u8], key: &[u8]) -> Result<Arc<dyn ResolvesClientCert>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate).filter_map(Result::ok).collect();
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("client-key: {error}"))?;
    let provider = rustls::crypto::ring::default_provider();
    let pair = CertifiedKey::from_der(chain, key, &provider).map_err(|error| format!("client-certificate: {error}"))?;
    Ok(Arc::new(SingleCertAndKey::from(pair)))
}

fn authorization(user: &Value, folder: &Path) -> Result<Option<HeaderValue>, String> {
    let text = |key: &str| meta::str_at(user, &[key]);
    let value = match (text("token"), text("tokenFile"), text("username")) {
        ("", "", "") => return Ok(None),
        ("", "", name) => format!("Basic {}", STANDARD.encode(format!("{name}:{}", text("password")))),
        ("", file, _) => {
            let token = std::fs::read_to_string(folder.join(file)).map_err(|error| format!("{file}: {error}"))?;
            format!("Bearer {}", token.trim())
        }
        (token, ..) => format!("Bearer {token}"),
    };
    let mut value = HeaderValue::try_from(value).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(cluster: Value, user: Value) -> Value {
        json!({
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": cluster}], "users": [{"name": "u", "user": user}],
        })
    }

    #[test]
    fn a_kubeconfig_says_where_and_who() {
        let read = |cluster, user| Webhook::of(&config(cluster, user), Path::new("/"), Duration::ZERO);
        let hook = read(json!({"server": "http://127.0.0.1:9/audit"}), json!({"token": "t"})).unwrap();
        assert_eq!(hook.url, "http://127.0.0.1:9/audit?timeout=30s");
        assert_eq!(hook.authorization.unwrap(), "Bearer t");
        let hook = read(json!({"server": "http://a?b=c"}), json!({"username": "a", "password": "b"})).unwrap();
        assert_eq!(
            (&*hook.url, &hook.authorization.unwrap()),
            ("http://a?b=c&timeout=30s", &HeaderValue::from_static("Basic YTpi"))
        );
        let refused = |cluster, user| read(cluster, user).err().unwrap();
        assert_eq!(refused(json!({"server": "ftp://a"}), json!({})), "server \"ftp://a\": not an http or https URL");
        assert_eq!(refused(json!({"server": "http://a"}), json!({"exec": {}})), "exec is not supported here");
        let nowhere = Webhook::of(&json!({"current-context": "x"}), Path::new("/"), Duration::ZERO).err();
        assert_eq!(nowhere.unwrap(), "context \"x\" does not exist");
    }
}
