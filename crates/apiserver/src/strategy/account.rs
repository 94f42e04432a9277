//! Service accounts.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::status::Result;

use super::{Context, Family, Posted, Services, Strategy};

pub fn strategies(services: &Arc<Services>) -> Family {
    vec![("", "serviceaccounts", Arc::new(ServiceAccounts(services.clone())))]
}

/// Service accounts: their `token` subresource answers a TokenRequest.
struct ServiceAccounts(Arc<Services>);

impl Strategy for ServiceAccounts {
    fn post(&self, cx: &Context<'_>, subresource: &str, object: &Value, sent: &Value) -> Result<Posted> {
        debug_assert_eq!(subresource, "token");
        let answer = super::reviews::token(&self.0, cx, object, sent)?;
        Ok(Posted::Answer(answer))
    }
}
