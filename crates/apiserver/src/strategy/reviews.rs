//! Kinds that are questions: answered from the authenticator and the authoriser, never stored.

use std::sync::Arc;

use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, meta};

use super::{Context, Family, Services, Strategy};
use crate::authn::reviews as identity;
use crate::authz::reviews as access;

pub fn strategies(services: &Arc<Services>) -> Family {
    let make = |group, plural, ask| {
        let strategy: Arc<dyn Strategy> = Arc::new(Review { services: services.clone(), ask });
        (group, plural, strategy)
    };
    vec![
        make("authentication.k8s.io", "tokenreviews", Ask::Token),
        make("authentication.k8s.io", "selfsubjectreviews", Ask::Myself),
        make("authorization.k8s.io", "subjectaccessreviews", Ask::Access),
        make("authorization.k8s.io", "localsubjectaccessreviews", Ask::LocalAccess),
        make("authorization.k8s.io", "selfsubjectaccessreviews", Ask::MyAccess),
        make("authorization.k8s.io", "selfsubjectrulesreviews", Ask::MyRules),
    ]
}

#[derive(Clone, Copy)]
enum Ask {
    Token,
    Myself,
    Access,
    LocalAccess,
    MyAccess,
    MyRules,
}

struct Review {
    services: Arc<Services>,
    ask: Ask,
}

impl Strategy for Review {
    fn answer(&self, cx: &Context<'_>, sent: &Value) -> Result<Value> {
        let authorizer = &self.services.authorizer;
        match self.ask {
            Ask::Token => identity::token_review(&self.services.authenticator, sent, cx.now),
            Ask::Myself => Ok(identity::self_subject_review(cx.user, cx.now)),
            Ask::Access => access::subject_access_review(authorizer, sent),
            Ask::LocalAccess => access::local_access_review(authorizer, meta::namespace(sent), sent),
            Ask::MyAccess => access::self_access_review(authorizer, cx.user, sent),
            Ask::MyRules => access::self_rules_review(authorizer, cx.user, sent),
        }
    }
}

/// `serviceaccounts/token`
pub fn token(services: &Services, cx: &Context<'_>, account: &Value, sent: &Value) -> Result<Value> {
    let (namespace, name) = (meta::namespace(account), meta::name(account));
    if name.is_empty() {
        return Err(StatusError::not_found(&GroupResource::new("", "serviceaccounts"), name));
    }
    let id = uuid::Uuid::new_v4().to_string();
    let ask = identity::TokenAsk { namespace, name, body: sent, now: cx.now, id: &id, warnings: cx.warnings };
    identity::token_request(cx.view, &services.signer, &ask)
}
