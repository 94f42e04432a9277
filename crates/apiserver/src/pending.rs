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
