//! Admission webhooks with match conditions, and the server that webhook tests call.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should be able to create and update mutating webhook configurations with match conditions [Conformance]" => conditions_kept, &kinds::MUTATING_WEBHOOK;
    "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should be able to create and update validating webhook configurations with match conditions [Conformance]" => conditions_kept, &kinds::VALIDATING_WEBHOOK;
    "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should mutate everything except 'skip-me' configmaps [Conformance]" => all_but_skipped;
    "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should reject mutating webhook configurations with invalid match conditions [Conformance]" => bad_conditions, &kinds::MUTATING_WEBHOOK;
    "[sig-api-machinery] AdmissionWebhook [Privileged:ClusterAdmin] should reject validating webhook configurations with invalid match conditions [Conformance]" => bad_conditions, &kinds::VALIDATING_WEBHOOK;
}

const PORT: u16 = 9443;
const SERVICE: &str = "webhook";

/// The webhook server in the test's namespace.
pub struct Server {
    /// PEM, base64
    pub ca_bundle: String,
    namespace: String,
}

impl Server {
    /// Starts it behind a service, with a certificate for the service's name, and waits until the service leads to it.
    pub async fn start(cx: &Cx) -> Result<Self> {
        cx.step("starting the webhook server");
        let (ca, certificate, key) = certificates(&format!("{SERVICE}.{}.svc", cx.ns))?;
        let secret = json!({"metadata": {"name": SERVICE}, "stringData": {"tls.crt": certificate, "tls.key": key}});
        cx.api(&kinds::SECRET).create(&secret).await?;
        let mut container = serving("webhook", &["webhook", "--tls", "/tls", "--port", &PORT.to_string()]);
        container["volumeMounts"] = json!([{"name": "tls", "mountPath": "/tls", "readOnly": true}]);
        container["readinessProbe"] = json!({
            "httpGet": {"scheme": "HTTPS", "path": "/readyz", "port": PORT}, "periodSeconds": 1,
        });
        let mut server = pod(SERVICE, container);
        server["spec"]["volumes"] = json!([{"name": "tls", "secret": {"secretName": SERVICE}}]);
        let service = json!({
            "metadata": {"name": SERVICE},
            "spec": {"selector": {"name": SERVICE}, "ports": [{"port": PORT, "targetPort": PORT}]},
        });
        cx.api(&kinds::SERVICE).create(&service).await?;
        cx.start(&server).await.context("the webhook server")?;
        let labels = format!("kubernetes.io/service-name={SERVICE}");
        cx.api(&kinds::ENDPOINT_SLICE)
            .wait(&labelled(&labels), SOON, "endpoint of the webhook", |slices| {
                let ready = |slice: &Value| {
                    items(slice, "/endpoints").iter().any(|e| *at(e, "/conditions/ready") == json!(true))
                };
                when(slices.values().any(ready), || format!("slices {slices:?}"))
            })
            .await?;
        Ok(Server { ca_bundle: STANDARD.encode(ca), namespace: cx.ns.clone() })
    }

    /// How the API server is to call a path of the server.
    pub fn client_config(&self, path: &str) -> Value {
        json!({
            "caBundle": self.ca_bundle,
            "service": {"namespace": self.namespace, "name": SERVICE, "path": path, "port": PORT},
        })
    }
}

/// An authority's certificate, and a serving certificate of it with its key; all PEM.
fn certificates(host: &str) -> Result<(String, String, String)> {
    let ca_key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "conformance-webhook-ca");
    let ca = params.self_signed(&ca_key)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, host);
    params.use_authority_key_identifier_extension = true;
    let issuer = Issuer::from_ca_cert_pem(&ca.pem(), &ca_key)?;
    Ok((ca.pem(), params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
}

/// Waits until objects of a custom kind can be had in a version that needs the conversion webhook.
pub async fn await_conversion(api: &Api) -> Result<()> {
    retry(SOON, "conversion by the webhook", async || api.list(&[]).await).await?;
    Ok(())
}

fn config_maps() -> Value {
    json!([{
        "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"],
    }])
}

/// A configuration with one webhook that is called for config maps of the test's namespace.
fn configuration(cx: &Cx, client_config: &Value, conditions: &Value) -> Value {
    json!({
        "metadata": {"name": cx.unique("webhook")},
        "webhooks": [{
            "name": "conformance.example.com", "rules": config_maps(), "clientConfig": client_config,
            "matchConditions": conditions, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": cx.ns}},
        }],
    })
}

/// Nobody calls it: the conditions are what is tested.
fn nowhere(cx: &Cx) -> Value {
    json!({"service": {"namespace": cx.ns, "name": SERVICE, "path": "/deny", "port": PORT}})
}

async fn conditions_kept(cx: Arc<Cx>, kind: &'static Kind) -> Result<()> {
    let api = cx.api(kind);
    let first = json!([{"name": "expression-1", "expression": "object.metadata.namespace == 'production'"}]);
    let mut object = configuration(&cx, &nowhere(&cx), &first);
    object["webhooks"][0]["failurePolicy"] = "Ignore".into();
    let made = cx.create_for_test(kind, &object).await?;
    expect(&api.get(name(&made)).await?, "/webhooks/0/matchConditions", first)?;
    let second = json!([
        {"name": "expression-1", "expression": "object.metadata.namespace == 'production'"},
        {"name": "expression-2", "expression": "object.metadata.namespace == 'staging'"},
    ]);
    api.change(name(&made), |object| set(object, "/webhooks/0/matchConditions", second.clone())).await?;
    expect(&api.get(name(&made)).await?, "/webhooks/0/matchConditions", second)
}

async fn bad_conditions(cx: Arc<Cx>, kind: &'static Kind) -> Result<()> {
    let conditions = json!([{"name": "invalid-expression-1", "expression": "... [] bad expression"}]);
    let object = configuration(&cx, &nowhere(&cx), &conditions);
    let sent = cx.create_for_test(kind, &object).await;
    let status = expect_failure(sent, 422, "a configuration with an expression that is none")?;
    ensure!(status.message.contains("compilation failed"), "the complaint is {:?}", status.message);
    Ok(())
}

async fn all_but_skipped(cx: Arc<Cx>) -> Result<()> {
    let server = Server::start(&cx).await?;
    let conditions = json!([{"name": "skip-me", "expression": "object.metadata.name != 'skip-me'"}]);
    let mut object = configuration(&cx, &server.client_config("/mutating-configmaps"), &conditions);
    object["webhooks"][0]["failurePolicy"] = "Fail".into();
    let made = cx.create_for_test(&kinds::MUTATING_WEBHOOK, &object).await?;
    let config_maps = cx.api(&kinds::CONFIG_MAP);
    cx.step("waiting until the webhook is called");
    retry(SOON, "webhook in action", async || {
        // A name that is still to be generated is none yet for admission: the condition could not be answered.
        let name = format!("marker-{:016x}", rand::random::<u64>());
        let marker = json!({"metadata": {"name": name}, "data": {"mutation-start": "yes"}});
        let made = config_maps.create(&marker).await?;
        expect(&made, "/data/mutation-stage-1", "yes")
    })
    .await?;
    cx.step("config maps with both names");
    for (config_map, mutated) in [("skip-me", false), ("not-skipped", true)] {
        let object = json!({"metadata": {"name": config_map}, "data": {"mutation-start": "yes"}});
        let made = config_maps.create(&object).await?;
        let mut data = json!({"mutation-start": "yes"});
        if mutated {
            data["mutation-stage-1"] = "yes".into();
        }
        expect(&made, "/data", data)?;
    }
    cx.api(&kinds::MUTATING_WEBHOOK).delete(name(&made)).await?;
    Ok(())
}
