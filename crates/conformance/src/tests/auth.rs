//! sig-auth.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Request;
use rcgen::{CertificateParams, KeyPair};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Value, json};

use super::lifecycle::{Row, crud};
use crate::framework::*;

tests! {
    "[sig-auth] PodCertificateRequest API [Privileged:ClusterAdmin] should support PodCertificateRequest API operations [Conformance]" => crud, &POD_CERTIFICATE_REQUESTS;
    "[sig-auth] ServiceAccounts ServiceAccountIssuerDiscovery should support OIDC discovery of service account issuer [Conformance]" => issuer_discovery;
    "[sig-auth] ServiceAccounts should create a serviceAccountToken and ensure a successful TokenReview [Conformance]" => token_review;
    "[sig-auth] ServiceAccounts should guarantee kube-root-ca.crt exist in any namespace [Conformance]" => root_certificate;
    "[sig-auth] ServiceAccounts should update a ServiceAccount [Conformance]" => update_account;
    "[sig-auth] SubjectReview should support SubjectReview API operations [Conformance]" => subject_reviews;
}

/// The key that requests are for and certificates are of.
fn key() -> &'static KeyPair {
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    KEY.get_or_init(|| KeyPair::generate().expect("the system has randomness"))
}

fn seconds_from_now(seconds: i64) -> jiff::Timestamp {
    let now = jiff::Timestamp::now().as_second();
    jiff::Timestamp::from_second(now + seconds).expect("near the present")
}

static POD_CERTIFICATE_REQUESTS: Row = Row {
    kind: &kinds::POD_CERTIFICATE_REQUEST,
    object: |cx, _| {
        let request = CertificateParams::default().serialize_request(key()).expect("an empty request can be signed");
        json!({
            "metadata": {"name": "example-pcr"},
            "spec": {
                "signerName": format!("example.com/{}", cx.ns),
                "podName": "test-pod", "podUID": "12345678-1234-1234-1234-123456789012",
                "serviceAccountName": "default", "serviceAccountUID": "12345678-1234-1234-1234-123456789013",
                "nodeName": "test-node", "nodeUID": "12345678-1234-1234-1234-123456789014",
                "maxExpirationSeconds": 86400, "stubPKCS10Request": STANDARD.encode(request.der()),
            },
        })
    },
    patch: || json!({}),
    update: || json!({"metadata": {"labels": {"test.podcertificaterequest.example.com": "test"}}}),
    status: Some(|| {
        let from = seconds_from_now(-60);
        let until = seconds_from_now(-60 + 3600);
        let mut params = CertificateParams::new(vec!["conformance.example.com".to_owned()]).expect("a DNS name");
        let date = |t: jiff::Timestamp| {
            let date = t.to_zoned(jiff::tz::TimeZone::UTC);
            rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
                + std::time::Duration::from_secs(t.as_second().rem_euclid(86400).unsigned_abs())
        };
        (params.not_before, params.not_after) = (date(from), date(until));
        let certificate = params.self_signed(key()).expect("a certificate of a key of ours");
        json!({
            "certificateChain": certificate.pem(), "notBefore": from.to_string(), "notAfter": until.to_string(),
            "beginRefreshAt": seconds_from_now(-60 + 900).to_string(),
            "conditions": [{
                "type": "Issued", "status": "True", "reason": "Tested", "message": "by a test",
                "lastTransitionTime": seconds_from_now(0).to_string(),
            }],
        })
    }),
};

async fn update_account(cx: Arc<Cx>) -> Result<()> {
    let accounts = cx.api(&kinds::SERVICE_ACCOUNT);
    let made =
        accounts.create(&json!({"metadata": {"name": "subject"}, "automountServiceAccountToken": false})).await?;
    expect(&made, "/automountServiceAccountToken", false)?;
    let updated = accounts.change("subject", |account| account["automountServiceAccountToken"] = true.into()).await?;
    expect(&updated, "/automountServiceAccountToken", true)?;
    expect(&accounts.get("subject").await?, "/automountServiceAccountToken", true)
}

async fn root_certificate(cx: Arc<Cx>) -> Result<()> {
    const NAME: &str = "kube-root-ca.crt";
    let maps = cx.api(&kinds::CONFIG_MAP);
    let filled = |map: &Value| {
        let certificate = text(map, "/data/ca.crt");
        when(certificate.contains("BEGIN CERTIFICATE"), || format!("ca.crt is {certificate:?}"))
    };
    const LIMIT: Duration = Duration::from_secs(30);
    let first = maps.wait_one(NAME, LIMIT, "root certificate", filled).await?;
    cx.step("deleted, it comes back");
    maps.delete_with(NAME, &json!({"gracePeriodSeconds": 0})).await?;
    let again = maps.wait_one(NAME, LIMIT, "root certificate after its deletion", |map| {
        when(uid(map) != uid(&first), || "still the old one".to_owned())?;
        filled(map)
    });
    again.await?;
    cx.step("changed, it is mended");
    // Whatever else the object had, and without a word on which state of it is meant.
    let spoilt = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": {"ca.crt": ""}});
    maps.send("PUT", &[NAME], &[], Some(&spoilt)).await?;
    maps.wait_one(NAME, LIMIT, "root certificate after a change", filled).await?;
    Ok(())
}

async fn token_review(cx: Arc<Cx>) -> Result<()> {
    let accounts = cx.api(&kinds::SERVICE_ACCOUNT);
    let made = accounts.create(&json!({"metadata": {"name": "subject"}})).await?;
    // As typed clients write an empty request.
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {"creationTimestamp": null},
        "spec": {"audiences": null, "expirationSeconds": null, "boundObjectRef": null},
        "status": {"token": "", "expirationTimestamp": null},
    });
    let answer = accounts.send("POST", &["subject", "token"], &[], Some(&request)).await?;
    let token = text(&answer, "/status/token");
    ensure!(!token.is_empty(), "no token was made: {answer}");
    let review = cx
        .api(&kinds::TOKEN_REVIEW)
        .create(&json!({"metadata": {"creationTimestamp": null}, "spec": {"token": token}, "status": {"user": {}}}))
        .await?;
    expect(&review, "/status/authenticated", true)?;
    ensure!(text(&review, "/status/error").is_empty(), "error {}", text(&review, "/status/error"));
    expect(&review, "/status/user/username", format!("system:serviceaccount:{}:subject", cx.ns))?;
    expect(&review, "/status/user/uid", uid(&made))
}

async fn subject_reviews(cx: Arc<Cx>) -> Result<()> {
    let account = cx.api(&kinds::SERVICE_ACCOUNT).create(&json!({"metadata": {"name": "subject"}})).await?;
    let user = format!("system:serviceaccount:{}:subject", cx.ns);
    let groups = [
        "system:authenticated".to_owned(),
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{}", cx.ns),
    ];
    let attributes = json!({"verb": "list", "resource": "configmaps", "namespace": cx.ns, "version": "v1"});
    let spec =
        |user: &str| json!({"resourceAttributes": attributes, "user": user, "groups": groups, "uid": uid(&account)});

    let mut request = Request::get(cx.api(&kinds::CONFIG_MAP).path(&[]))
        .header("impersonate-user", &user)
        .header("impersonate-uid", uid(&account));
    for group in &groups {
        request = request.header("impersonate-group", group);
    }
    let listed = cx.client.request::<Value>(request.body(Vec::new())?).await.context("list as the account");
    let allowed = match listed {
        Ok(_) => true,
        Err(error) if failure(&error).is_some_and(|status| status.code == 403) => false,
        Err(error) => return Err(error),
    };
    let review = cx.api(&kinds::SUBJECT_ACCESS_REVIEW).create(&json!({"metadata": {}, "spec": spec(&user)})).await?;
    expect(&review, "/status/allowed", allowed).context("SubjectAccessReview")?;
    let local = json!({"metadata": {"namespace": cx.ns}, "spec": spec("subject")});
    let review = cx.api(&kinds::LOCAL_SUBJECT_ACCESS_REVIEW).create(&local).await?;
    expect(&review, "/status/allowed", allowed).context("LocalSubjectAccessReview")
}

/// Prints a token of the pod's own, the issuer's document and its keys, a line each, as a program in a pod gets them.
const DISCOVER: &str = r#"set -e
get() { curl -sS --fail --max-time 10 --cacert /sa/ca.crt -H "Authorization: Bearer $(cat /sa/api-token)" "$1"; }
get https://kubernetes.default.svc/.well-known/openid-configuration > /tmp/issuer
keys=$(sed 's/.*"jwks_uri" *: *"\([^"]*\)".*/\1/' /tmp/issuer | tr -d '\n')
get "$keys" > /tmp/keys
for file in /sa/token /tmp/issuer /tmp/keys; do tr -d '\n' < $file; echo; done
"#;

async fn issuer_discovery(cx: Arc<Cx>) -> Result<()> {
    let audience = "oidc-discovery-test";
    let binding = json!({
        "metadata": {"name": cx.unique("discovery")},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:service-account-issuer-discovery",
        },
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": cx.ns}],
    });
    cx.create_for_test(&kinds::CLUSTER_ROLE_BINDING, &binding).await?;
    let mut asking = container("asking", TOOLS, &["sh", "-c", DISCOVER]);
    asking["volumeMounts"] = json!([{"name": "sa", "mountPath": "/sa"}]);
    let mut asker = pod("asker", asking);
    let token = |path: &str, audience: Option<&str>| json!({"serviceAccountToken": {"path": path, "expirationSeconds": 600, "audience": audience}});
    let root = json!({"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}});
    asker["spec"]["volumes"] = json!([{"name": "sa", "projected": {
        "sources": [token("token", Some(audience)), token("api-token", None), root],
    }}]);
    let log = cx.run_to_end(&asker).await?;
    let mut lines = log.lines();
    let mut line = |what: &str| lines.next().with_context(|| format!("no {what} in {log:?}"));
    let (token, issuer, keys) = (line("token")?, line("issuer")?, line("keys")?);
    let issuer: Value = serde_json::from_str(issuer).context("the issuer's document")?;
    let keys: Value = serde_json::from_str(keys).context("the issuer's keys")?;
    let claims = verified(token, &keys)?;
    expect(&claims, "/iss", text(&issuer, "/issuer"))?;
    expect(&claims, "/sub", format!("system:serviceaccount:{}:default", cx.ns))?;
    ensure!(items(&claims, "/aud").iter().any(|a| *a == audience), "the token is for {}", at(&claims, "/aud"));
    let now = jiff::Timestamp::now().as_second();
    ensure!(
        number(&claims, "/exp") > now && number(&claims, "/iat") <= now + 60,
        "the token's time is wrong: {claims}"
    );
    for field in ["response_types_supported", "subject_types_supported", "id_token_signing_alg_values_supported"] {
        ensure!(!items(&issuer, &format!("/{field}")).is_empty(), "the issuer's document lacks {field}: {issuer}");
    }
    Ok(())
}

/// The claims of a token whose signature is of one of the keys (a JSON web key set).
fn verified(token: &str, keys: &Value) -> Result<Value> {
    let (signed, signature) = token.rsplit_once('.').context("not a token")?;
    let (header, claims) = signed.split_once('.').context("not a token")?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).context("not base64");
    let header: Value = serde_json::from_slice(&decode(header)?)?;
    let key = items(keys, "/keys").iter().find(|key| key["kid"] == header["kid"]);
    let key = key.with_context(|| format!("no key {} in {keys}", header["kid"]))?;
    let (message, signature) = (signed.as_bytes(), decode(signature)?);
    let part = |name: &str| decode(text(key, name));
    let checked = match text(&header, "/alg") {
        "RS256" => RsaPublicKeyComponents { n: part("/n")?, e: part("/e")? }.verify(
            &signature::RSA_PKCS1_2048_8192_SHA256,
            message,
            &signature,
        ),
        "ES256" => {
            let point = [vec![4], part("/x")?, part("/y")?].concat();
            UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, &signature)
        }
        other => bail!("signed with {other}"),
    };
    checked.map_err(|_| anyhow::anyhow!("the token's signature is not of the issuer's key {}", header["kid"]))?;
    Ok(serde_json::from_slice(&decode(claims)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_verified_by_its_issuers_key_only() {
        let rng = ring::rand::SystemRandom::new();
        let new_key = || {
            let der =
                signature::EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &rng).unwrap();
            signature::EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref(), &rng)
                .unwrap()
        };
        let jwks = |key: &signature::EcdsaKeyPair| {
            let point = ring::signature::KeyPair::public_key(key).as_ref();
            let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            json!({"keys": [{"kid": "k", "kty": "EC", "x": part(&point[1..33]), "y": part(&point[33..])}]})
        };
        let (right, wrong) = (new_key(), new_key());
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(json!({"alg": "ES256", "kid": "k"})), part(json!({"iss": "i"})));
        let signature = URL_SAFE_NO_PAD.encode(right.sign(&rng, signed.as_bytes()).unwrap());
        let token = format!("{signed}.{signature}");
        assert_eq!(verified(&token, &jwks(&right)).unwrap(), json!({"iss": "i"}));
        assert!(verified(&token, &jwks(&wrong)).is_err());
    }
}
