//! The administrator's kubeconfig.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::pki::KeyPairPem;

/// A kubeconfig for `server` (an URL) with a client certificate. JSON is YAML.
pub fn render(server: &str, ca_pem: &str, user: &KeyPairPem) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "coxswain",
        "clusters": [{"name": "coxswain", "cluster": {"server": server, "certificate-authority-data": encode(ca_pem)}}],
        "users": [{"name": "admin", "user": {
            "client-certificate-data": encode(&user.certificate), "client-key-data": encode(&user.key),
        }}],
        "contexts": [{"name": "coxswain", "context": {"cluster": "coxswain", "user": "admin"}}],
        "preferences": {},
    });
    format!("{config:#}\n")
}
