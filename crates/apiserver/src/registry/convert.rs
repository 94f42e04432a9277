//! Objects of one resource in its several versions.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::resource::ResourceRow;
use apimachinery::status::Result;

use crate::server::ApiServer;
use crate::strategy::convert;

/// An object of the row `from` as one of the row `to`, which is another version of the same resource.
pub async fn between(
    _server: &ApiServer,
    from: &Arc<ResourceRow>,
    to: &Arc<ResourceRow>,
    object: Value,
) -> Result<Value> {
    Ok(convert::from_storage(to, convert::to_storage(from, object)))
}
