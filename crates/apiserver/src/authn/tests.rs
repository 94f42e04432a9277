//! Credentials over a store.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

use super::reviews::{TokenAsk, token_request, token_review};
use super::*;
use crate::admission::testing::Cluster;
use crate::authz::Authorizer;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

fn signer() -> Arc<TokenSigner> {
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    Arc::new(TokenSigner::new(ISSUER, key))
}

fn cluster() -> (Cluster, Authenticator) {
    let cluster = Cluster::new();
    cluster.put("serviceaccounts", json!({"metadata": {"name": "bot", "namespace": "ns", "uid": "sa-1"}}));
    cluster.put("minions", json!({"metadata": {"name": "n1", "uid": "node-1"}}));
    cluster.put("pods", pod("pod-1"));
    let join = UserInfo::new("system:bootstrap:join", &["system:bootstrappers"]);
    let authenticator = Authenticator::new(cluster.view.clone(), signer(), [("secret-token".to_owned(), join)]);
    (cluster, authenticator)
}

fn pod(uid: &str) -> Value {
    json!({"metadata": {"name": "p", "namespace": "ns", "uid": uid}, "spec": {"serviceAccountName": "bot", "nodeName": "n1"}})
}

fn request(authenticator: &Authenticator, spec: Value) -> Result<Value> {
    let body = json!({"kind": "TokenRequest", "spec": spec});
    let warnings = Default::default();
    let ask = TokenAsk { namespace: "ns", name: "bot", body: &body, now: NOW, id: "id-1", warnings: &warnings };
    token_request(&authenticator.view, &authenticator.signer, &ask)
}

fn token(authenticator: &Authenticator, spec: Value) -> String {
    request(authenticator, spec).unwrap()["status"]["token"].as_str().unwrap().to_owned()
}

fn bearer(authenticator: &Authenticator, token: &str, now: i64) -> Result<Arc<UserInfo>> {
    authenticator.authenticate(&Credentials { peer: None, bearer: Some(token), now })
}

#[test]
fn a_bound_token_is_good_while_its_pod_lives() {
    let (cluster, authenticator) = cluster();
    let bound = json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "pod-1"}});
    let token = token(&authenticator, bound);
    let user = bearer(&authenticator, &token, NOW).unwrap();
    assert_eq!(user.name, "system:serviceaccount:ns:bot");
    assert_eq!(user.uid, "sa-1");
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
    let extra: Vec<String> =
        user.extra.iter().map(|(k, v)| format!("{}={}", k.rsplit('/').next().unwrap(), v.join(","))).collect();
    assert_eq!(extra, ["credential-id=JTI=id-1", "node-name=n1", "node-uid=node-1", "pod-name=p", "pod-uid=pod-1"]);

    cluster.put("pods", pod("pod-2"));
    assert_eq!(bearer(&authenticator, &token, NOW).unwrap_err().code, 401, "the pod is another one");
    let mut dying = pod("pod-1");
    dying["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:30Z");
    cluster.put("pods", dying);
    assert!(bearer(&authenticator, &token, NOW).is_ok(), "until its grace period ends");
    assert!(bearer(&authenticator, &token, NOW + 120).is_err());
    cluster.delete("pods", "ns", "p");
    assert!(bearer(&authenticator, &token, NOW).is_err());
}

#[test]
fn tokens_die_with_their_account_their_time_and_outside_their_audience() {
    let (cluster, authenticator) = cluster();
    let good = token(&authenticator, json!({}));
    assert!(bearer(&authenticator, &good, NOW).is_ok());
    assert!(bearer(&authenticator, &good, NOW + 3660).is_ok());
    assert_eq!(bearer(&authenticator, &good, NOW + 3661).unwrap_err(), StatusError::unauthorized());
    let vault = token(&authenticator, json!({"audiences": ["vault"]}));
    assert_eq!(bearer(&authenticator, &vault, NOW).unwrap_err().code, 401);
    let other = Authenticator::new(cluster.view.clone(), signer(), []);
    assert_eq!(bearer(&other, &good, NOW).unwrap_err().code, 401, "signed by another cluster's key");
    for bad in ["", "x", "a.b.c", &good[1..], &good[..good.len() - 2]] {
        assert_eq!(bearer(&authenticator, bad, NOW).unwrap_err().code, 401, "{bad}");
    }
    cluster.delete("serviceaccounts", "ns", "bot");
    assert_eq!(bearer(&authenticator, &good, NOW).unwrap_err().code, 401);
}

#[test]
fn token_requests_are_checked_as_upstream() {
    let (_cluster, authenticator) = cluster();
    let answer = request(&authenticator, json!({"expirationSeconds": 3607})).unwrap();
    assert_eq!(answer["status"]["expirationTimestamp"], "2027-01-15T09:00:07Z");
    let claims =
        |answer: &Value| authenticator.signer.verify::<Claims>(answer["status"]["token"].as_str().unwrap()).unwrap();
    assert_eq!(claims(&answer).exp, NOW + 3607, "only pods' tokens are extended");
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p"});
    let extended =
        claims(&request(&authenticator, json!({"expirationSeconds": 3607, "boundObjectRef": bound})).unwrap());
    assert_eq!((extended.exp - NOW, extended.kubernetes.warnafter), (365 * 24 * 3600, Some(NOW + 3607)));

    let reference = |kind: &str, name: &str, uid: &str| json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name, "uid": uid}});
    let failures = [
        (json!({"expirationSeconds": 10}), 422, "may not specify a duration less than 10 minutes"),
        (json!({"expirationSeconds": 1i64 << 33}), 422, "may not specify a duration larger than 2^32 seconds"),
        (reference("Pod", "gone", ""), 404, "pods \"gone\" not found"),
        (reference("Pod", "p", "other"), 409, "The object might have been deleted and then recreated"),
        (reference("Deployment", "d", ""), 400, "cannot bind token to object of type v1, Kind=Deployment"),
    ];
    for (spec, code, message) in failures {
        let error = request(&authenticator, spec).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(message), "{error}");
    }
}

#[test]
fn a_token_review_tells_whose_token_it_is() {
    let (_cluster, authenticator) = cluster();
    let token = token(&authenticator, json!({"audiences": ["vault", "other"]}));
    let review = |spec: Value| token_review(&authenticator, &json!({"spec": spec}), NOW).map(|r| r["status"].clone());
    let status = review(json!({"token": token, "audiences": ["vault"]})).unwrap();
    assert_eq!(status["authenticated"], true);
    assert_eq!(status["audiences"], json!(["vault"]));
    assert_eq!(status["user"]["username"], "system:serviceaccount:ns:bot");
    let status = review(json!({"token": token})).unwrap();
    assert_eq!(status.get("authenticated"), None);
    assert!(status["error"].as_str().unwrap().starts_with("[invalid bearer token, "));
    assert_eq!(review(json!({})).unwrap_err().code, 400);
}

#[test]
fn certificates_name_users_while_they_are_valid() {
    let (_cluster, authenticator) = cluster();
    let certificate = |cn: &str| {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2028, 1, 1);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.distinguished_name.push(DnType::OrganizationName, "devs");
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    };
    let ask = |chain: &[CertificateDer<'static>], now| {
        authenticator.authenticate(&Credentials { peer: Peer::new(chain).as_ref(), bearer: None, now })
    };
    let user = ask(&[certificate("ann")], NOW).unwrap();
    assert_eq!(
        (user.name.as_str(), user.groups.as_slice()),
        ("ann", &["devs".to_owned(), AUTHENTICATED.to_owned()][..])
    );
    assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("X509SHA256="));
    assert_eq!(ask(&[certificate("ann")], NOW + 40_000_000).unwrap_err().code, 401);
    assert_eq!(ask(&[certificate("")], NOW).unwrap().name, ANONYMOUS);
    assert_eq!(ask(&[CertificateDer::from(vec![0x30, 0x00])], NOW).unwrap_err().code, 401);
}

#[test]
fn fixed_tokens_and_nobody() {
    let (_cluster, authenticator) = cluster();
    let user = bearer(&authenticator, "secret-token", NOW).unwrap();
    assert_eq!((user.name.as_str(), user.in_group(AUTHENTICATED)), ("system:bootstrap:join", true));
    let nobody = authenticator.authenticate(&Credentials { peer: None, bearer: None, now: NOW }).unwrap();
    assert_eq!(*nobody, UserInfo::new(ANONYMOUS, &[UNAUTHENTICATED]));
}

#[test]
fn keys_are_published() {
    let (_cluster, authenticator) = cluster();
    let jwks = authenticator.jwks();
    assert_eq!(jwks["keys"][0]["kid"], authenticator.signer.keys().next().unwrap().id());
    assert_eq!(jwks["keys"][0]["alg"], "ES256");
    let document = authenticator.openid_configuration();
    assert_eq!(document["issuer"], ISSUER);
    assert_eq!(document["jwks_uri"], format!("{ISSUER}/openid/v1/jwks"));
}

#[test]
fn impersonation_needs_each_permission() {
    let (cluster, _) = cluster();
    cluster.put(
        "clusterroles",
        json!({"metadata": {"name": "as"}, "rules": [
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users", "serviceaccounts"]},
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["groups"], "resourceNames": ["devs"]}]}),
    );
    cluster.put(
        "clusterrolebindings",
        json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "as"},
        "subjects": [{"kind": "User", "name": "ann"}]}),
    );
    let authorizer = Authorizer::new(cluster.view.clone());
    let ann = UserInfo::new("ann", &[AUTHENTICATED]);
    let become_user = |headers: &[(&'static str, &'static str)]| {
        let headers =
            headers.iter().map(|(k, v)| (http::HeaderName::from_static(k), http::HeaderValue::from_static(v)));
        impersonate(&authorizer, &ann, &headers.collect())
    };
    let bob = become_user(&[("impersonate-user", "bob"), ("impersonate-group", "devs")]).unwrap();
    assert_eq!((bob.name.as_str(), bob.groups.as_slice()), ("bob", &["devs".to_owned(), AUTHENTICATED.to_owned()][..]));
    let bot = become_user(&[("impersonate-user", "system:serviceaccount:ns:bot")]).unwrap();
    assert_eq!(bot.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", AUTHENTICATED]);
    assert_eq!(become_user(&[("impersonate-user", ANONYMOUS)]).unwrap().groups, [UNAUTHENTICATED]);
    assert_eq!(become_user(&[]).unwrap(), ann);
    let error = become_user(&[("impersonate-user", "bob"), ("impersonate-group", "system:masters")]).unwrap_err();
    assert_eq!(
        error.message,
        r#"groups "system:masters" is forbidden: User "ann" cannot impersonate resource "groups" in API group "" at the cluster scope"#
    );
    assert_eq!(become_user(&[("impersonate-user", "bob"), ("impersonate-extra-scopes", "x")]).unwrap_err().code, 403);
    assert_eq!(become_user(&[("impersonate-group", "devs")]).unwrap_err().code, 500);
    let unreadable = http::HeaderValue::from_bytes(b"\xff").unwrap();
    let headers = [(http::HeaderName::from_static("impersonate-user"), unreadable)].into_iter().collect();
    assert_eq!(impersonate(&authorizer, &ann, &headers).unwrap_err().code, 400);
}

#[test]
fn tokens_of_old_live_as_long_as_their_secrets_and_are_tracked() {
    use base64::Engine as _;
    let (cluster, authenticator) = cluster();
    let token = authenticator.signer.legacy_token(("ns", "bot", "sa-1"), "s").unwrap();
    let secret = |token: &str, labels: Value| {
        let data = base64::engine::general_purpose::STANDARD.encode(token);
        json!({"metadata": {"name": "s", "namespace": "ns", "uid": "secret-1", "labels": labels}, "data": {"token": data}})
    };
    let why = |token: &str| authenticator.check_token(token, None, NOW).err().unwrap_or_default();
    assert_eq!(why(&token), "[invalid bearer token, Token has been invalidated]");
    cluster.put("secrets", secret("another", json!({})));
    assert_eq!(why(&token), "[invalid bearer token, Token does not match server's copy]");
    cluster.put("secrets", secret(&token, json!({})));
    let user = bearer(&authenticator, &token, NOW).unwrap();
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:ns:bot", "sa-1"));
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
    assert_eq!(authenticator.tracker.days(), ["ns/s 2027-01-15"]);
    let vault = ["vault".to_owned()];
    assert!(authenticator.check_token(&token, Some(&vault), NOW).is_err(), "good for the API server only");
    cluster.put("secrets", secret(&token, json!({"kubernetes.io/legacy-token-invalid-since": "2027-01-01"})));
    assert!(why(&token).contains("has been marked invalid"));
    cluster.put("secrets", secret(&token, json!({})));
    cluster.put("serviceaccounts", json!({"metadata": {"name": "bot", "namespace": "ns", "uid": "sa-2"}}));
    assert_eq!(why(&token), "[invalid bearer token, ServiceAccount UID (sa-2) does not match claim (sa-1)]");
}

#[test]
fn the_audit_log_is_told_of_tokens_that_should_be_replaced() {
    use base64::Engine as _;
    let (cluster, authenticator) = cluster();
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p"});
    let extended = token(&authenticator, json!({"expirationSeconds": 3607, "boundObjectRef": bound}));
    let user = bearer(&authenticator, &extended, NOW).unwrap();
    assert_eq!(authenticator.note_of(&extended, Some(&user), NOW + 3607), None);
    let stale = "subject: system:serviceaccount:ns:bot, seconds after warning threshold: 3";
    let note = authenticator.note_of(&extended, Some(&user), NOW + 3610);
    assert_eq!(note, Some(("authentication.k8s.io/stale-token", stale.to_owned())));
    let other = UserInfo::new("somebody", &[]);
    assert_eq!(authenticator.note_of(&extended, Some(&other), NOW + 3610), None, "came in by a certificate");

    let old = authenticator.signer.legacy_token(("ns", "bot", "sa-1"), "s").unwrap();
    let put = |labels: Value| {
        let data = base64::engine::general_purpose::STANDARD.encode(&old);
        let metadata = json!({"name": "s", "namespace": "ns", "uid": "secret-1", "labels": labels});
        cluster.put("secrets", json!({"metadata": metadata, "data": {"token": data}}));
    };
    put(json!({}));
    let note = |user: Option<&UserInfo>| {
        authenticator
            .note_of(&old, user, NOW)
            .map(|(key, value)| format!("{}: {value}", key.rsplit('/').next().unwrap()))
    };
    assert_eq!(note(Some(&user)), None, "never seen");
    assert!(bearer(&authenticator, &old, NOW).is_ok());
    assert_eq!(note(Some(&user)).as_deref(), Some("legacy-token-manual-secret: s"));
    let account = json!({"metadata": {"name": "bot", "namespace": "ns", "uid": "sa-1"}, "secrets": [{"name": "s"}]});
    cluster.put("serviceaccounts", account);
    assert_eq!(note(Some(&user)).as_deref(), Some("legacy-token-autogenerated-secret: s"));
    assert_eq!(note(None), None);
    put(json!({"kubernetes.io/legacy-token-invalid-since": "2027-01-01"}));
    assert_eq!(note(None).as_deref(), Some("legacy-token-invalidated: s/ns"));
}

#[test]
fn other_issuers_and_their_keys_are_believed_where_they_are_named() {
    let (cluster, _) = cluster();
    let old = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let old_public = old.public().clone();
    let before = Authenticator::new(cluster.view.clone(), Arc::new(TokenSigner::new("https://old", old)), []);
    let audiences = json!({"audiences": [ISSUER]});
    let token = token(&before, audiences);
    let key = || SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let ask = |signer: TokenSigner| {
        let authenticator = Authenticator::new(cluster.view.clone(), Arc::new(signer), []);
        authenticator.check_token(&token, None, NOW).map(|checked| checked.user.name)
    };
    let new = || TokenSigner::new(ISSUER, key());
    assert_eq!(ask(new()), Err("invalid bearer token".to_owned()), "another's issuer");
    let named = new().with_former_issuers(["https://old".to_owned()]);
    assert_eq!(ask(named), Err("[invalid bearer token, invalid signature, no keys found]".to_owned()));
    let both = new().with_former_issuers(["https://old".to_owned()]).with_former_keys(vec![old_public]);
    assert_eq!(ask(both), Ok("system:serviceaccount:ns:bot".to_owned()));
}

#[test]
fn the_longest_life_of_tokens_is_kept_and_told() {
    let (cluster, _) = cluster();
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let signer = TokenSigner::new(ISSUER, key).with_max_seconds(7200).with_jwks_uri("https://keys".to_owned());
    assert_eq!(signer.openid_configuration()["jwks_uri"], "https://keys");
    let warnings = crate::warnings::Warnings::default();
    let body = json!({"spec": {"expirationSeconds": 9000}});
    let ask = TokenAsk { namespace: "ns", name: "bot", body: &body, now: NOW, id: "i", warnings: &warnings };
    let answer = token_request(&cluster.view, &signer, &ask).unwrap();
    assert_eq!(answer["spec"]["expirationSeconds"], 7200);
    assert_eq!(warnings.take(), ["requested expiration of 9000 seconds shortened to 7200 seconds"]);
    let body = json!({"metadata": {"uid": "other"}, "spec": {}});
    let error = token_request(&cluster.view, &signer, &TokenAsk { body: &body, ..ask }).unwrap_err();
    assert_eq!(
        error.message,
        "Operation cannot be fulfilled on TokenRequest.authentication.k8s.io \"bot\": the UID in the token request (other) does not match the UID of the service account (sa-1)"
    );
}
