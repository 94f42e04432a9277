//! What the audit log is told of a service account's token besides whose it is: that it should have been replaced, or that it is one
//! of those of old.

use super::{Authenticator, Verified, fingerprint};
use crate::request::UserInfo;

impl Authenticator {
    /// An annotation's key and value, of a bearer token that was just looked at. `user` is who it was taken for; none if it was refused.
    pub(crate) fn note_of(&self, token: &str, user: Option<&UserInfo>, now: i64) -> Option<(&'static str, String)> {
        let verified = self.verified.lock().get(&fingerprint(token)).cloned()?;
        match &*verified {
            Verified::Bound(claims) => {
                let late = now - claims.kubernetes.warnafter?;
                let taken = user.is_some_and(|user| user.name == claims.sub) && late > 0;
                let text = || format!("subject: {}, seconds after warning threshold: {late}", claims.sub);
                taken.then(|| ("authentication.k8s.io/stale-token", text()))
            }
            Verified::Legacy(claims) => claims.note(&self.view, user),
        }
    }
}
