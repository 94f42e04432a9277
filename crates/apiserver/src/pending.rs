// TEMPORARY: replaced as apimachinery::{apply,table,openapi} land. Never committed.
pub mod apply {
    use apimachinery::Value;
    use apimachinery::schema::{Schema, TypeId};
    use apimachinery::status::{GroupResource, StatusError};
    use std::borrow::Cow;
    pub struct Manager<'a> {
        pub name: &'a str,
        pub api_version: Cow<'a, str>,
        pub subresource: &'a str,
        pub now: Cow<'a, str>,
    }
    pub struct E;
    impl E {
        pub fn to_status(&self, _: &GroupResource, _: &str) -> StatusError {
            StatusError::internal("apply pending")
        }
    }
    pub fn apply(
        _: &Schema,
        _: TypeId,
        live: Option<&Value>,
        config: &Value,
        _: &Manager<'_>,
        _: bool,
    ) -> Result<Value, E> {
        let mut m = live.cloned().unwrap_or_default();
        let _ = apimachinery::patch::merge::apply(&mut m, config.clone());
        Ok(m)
    }
    pub fn track_update(_: &Schema, _: TypeId, _: Option<&Value>, _: &mut Value, _: &Manager<'_>) -> Result<(), E> {
        Ok(())
    }
}
pub mod table {
    use apimachinery::Value;
    use apimachinery::resource::{Column, ResourceRow};
    pub fn columns(_: &ResourceRow) -> Vec<Column> {
        vec![Column {
            name: "Name".into(),
            kind: "string".into(),
            format: "name".into(),
            description: "".into(),
            priority: 0,
            path: "".into(),
        }]
    }
    pub fn row(_: &ResourceRow, o: &Value, _: i64) -> Vec<Value> {
        vec![apimachinery::meta::name(o).into()]
    }
}
pub mod openapi {
    pub mod v2 {
        use apimachinery::{Value, resource::ResourceTable};
        pub fn document(_: &ResourceTable, _: &str) -> Value {
            Value::Null
        }
    }
    pub mod gnostic {
        use apimachinery::Value;
        pub fn encode(_: &Value) -> Vec<u8> {
            vec![]
        }
    }
    pub mod v3 {
        use apimachinery::{Value, resource::ResourceTable};
        pub fn index(_: &ResourceTable) -> Value {
            Value::Null
        }
        pub fn document(_: &ResourceTable, _: &str, _: &str, _: &str) -> Option<Value> {
            None
        }
    }
}
