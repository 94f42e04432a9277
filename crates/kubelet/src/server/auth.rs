//! Who asks the kubelet, and may they. Certificates speak for themselves; everything else is delegated to the API server
//! (`TokenReview`, `SubjectAccessReview`), and its word is remembered for a while.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

/// Upstream's `authentication.webhook.cacheTTL`.
const TOKEN_TTL: Duration = Duration::from_secs(120);
/// Upstream's `authorization.webhook.cacheAuthorizedTTL` and `cacheUnauthorizedTTL`.
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
/// Answers remembered at most, of each kind.
const REMEMBERED_MAX: usize = 1024;

/// The API server's own group: whoever is in it may do everything.
const MASTERS: &str = "system:masters";

/// An authenticated client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Who shows a client certificate, and until when it may be believed: a connection may outlast its certificate.
pub struct Certified {
    user: User,
    not_after: SystemTime,
}

impl Certified {
    /// The common name is the user, each organisation a group. The TLS layer has verified the certificate. `None` if it names
    /// nobody.
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
        groups.push("system:authenticated".to_owned());
        let not_after = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        Some(Certified { user: User { name, groups, ..User::default() }, not_after })
    }

    /// The user, while the certificate is valid.
    pub fn user_at(&self, now: SystemTime) -> Option<&User> {
        (now <= self.not_after).then_some(&self.user)
    }
}

impl User {
    /// The API server itself: asking it about itself would be a detour.
    fn is_api_server(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}

/// A right on this node: `verb` on `nodes/<subresource>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    pub verb: &'static str,
    pub subresource: &'static str,
}

/// Decides on clients. Errors mean that no decision could be had.
pub trait Authority: Send + Sync + 'static {
    /// The user whom a bearer token belongs to.
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, String>>;
    fn authorize<'a>(&'a self, user: &'a User, access: Access) -> BoxFuture<'a, Result<bool, String>>;
}

/// Answers with the time until which they hold.
struct Remembered<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Hash + Eq, V: Clone> Remembered<K, V> {
    fn new() -> Self {
        Remembered(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K, now: Instant) -> Option<V> {
        self.0.lock().get(key).filter(|(until, _)| *until > now).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, now: Instant, ttl: Duration) {
        let mut entries = self.0.lock();
        if entries.len() >= REMEMBERED_MAX {
            entries.retain(|_, (until, _)| *until > now);
        }
        if entries.len() < REMEMBERED_MAX {
            entries.insert(key, (now + ttl, value));
        }
    }
}

/// The API server as authority.
pub struct ApiAuthority {
    api: kube::Client,
    node_name: String,
    tokens: Remembered<[u8; 32], User>,
    decisions: Remembered<(User, Access), bool>,
}

impl ApiAuthority {
    pub fn new(api: kube::Client, node_name: &str) -> Self {
        let node_name = node_name.to_owned();
        ApiAuthority { api, node_name, tokens: Remembered::new(), decisions: Remembered::new() }
    }

    async fn review_token(&self, token: &str) -> Result<Option<User>, String> {
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(user) = self.tokens.get(&key, Instant::now()) {
            return Ok(Some(user));
        }
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: None };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = Api::all(self.api.clone()).create(&PostParams::default(), &review).await;
        let status = answer.map_err(|error| error.to_string())?.status.unwrap_or_default();
        let user = match status.user {
            Some(user) if status.authenticated == Some(true) => user,
            _ => return Ok(None),
        };
        let user = User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        };
        self.tokens.put(key, user.clone(), Instant::now(), TOKEN_TTL);
        Ok(Some(user))
    }

    async fn review_access(&self, user: &User, access: Access) -> Result<bool, String> {
        if user.is_api_server() {
            return Ok(true);
        }
        let key = (user.clone(), access);
        if let Some(allowed) = self.decisions.get(&key, Instant::now()) {
            return Ok(allowed);
        }
        let attributes = ResourceAttributes {
            verb: Some(access.verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(access.subresource.to_owned()),
            name: Some(self.node_name.clone()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
            groups: Some(user.groups.clone()),
            extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = Api::all(self.api.clone()).create(&PostParams::default(), &review).await;
        let allowed = answer.map_err(|error| error.to_string())?.status.is_some_and(|status| status.allowed);
        self.decisions.put(key, allowed, Instant::now(), if allowed { ALLOWED_TTL } else { DENIED_TTL });
        Ok(allowed)
    }
}

impl Authority for ApiAuthority {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, String>> {
        Box::pin(self.review_token(token))
    }

    fn authorize<'a>(&'a self, user: &'a User, access: Access) -> BoxFuture<'a, Result<bool, String>> {
        Box::pin(self.review_access(user, access))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_name_users_and_groups() {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "kube-apiserver-kubelet-client");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let certified = Certified::from_certificate(certificate.der()).unwrap();
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000);
        let user = certified.user_at(end).unwrap();
        assert_eq!(certified.user_at(end + Duration::from_secs(1)), None, "a connection outlasts its certificate");
        assert_eq!(user.name, "kube-apiserver-kubelet-client");
        assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
        assert!(user.is_api_server());
        assert!(Certified::from_certificate(b"junk").is_none());
    }

    #[test]
    fn answers_expire_and_are_bounded() {
        let (memory, now) = (Remembered::new(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        memory.put(0, true, now, Duration::from_secs(10));
        assert_eq!(memory.get(&0, later(9)), Some(true));
        assert_eq!(memory.get(&0, later(10)), None);
        for key in 1..REMEMBERED_MAX + 5 {
            memory.put(key, true, later(5), Duration::from_secs(10));
        }
        assert_eq!(memory.0.lock().len(), REMEMBERED_MAX);
        memory.put(usize::MAX, false, later(20), Duration::from_secs(10));
        assert_eq!(memory.get(&usize::MAX, later(20)), Some(false), "what has expired makes room");
    }
}
