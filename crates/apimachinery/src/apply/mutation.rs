//! Merging what a mutating admission policy made into an object: as an applied configuration, but that nobody comes to own anything.
//! Upstream's `ApplyStructuredMergeDiff`.

use serde_json::Value;

use super::typed::{Type, Typed};
use crate::schema::{ListKind, MAX_DEPTH, Schema, Shape, TypeId};

/// `object` with `configuration` merged in. Fails where that does not fit the schema, or would replace something atomic whole: whoever
/// means to add to such a thing would take away the rest of it. Errors are worded as upstream's.
pub fn merge_mutation(
    schema: &Schema,
    root: TypeId,
    mut object: Value,
    configuration: &Value,
) -> Result<Value, String> {
    let typed = Typed { schema, root };
    typed.validate(configuration).map_err(|why| format!("failed to convert patch object to typed object: {why}"))?;
    let mut atomics = Vec::new();
    find_atomics(schema, Type::Known(root), configuration, "", 0, &mut atomics);
    if !atomics.is_empty() {
        let paths = atomics.join(", ");
        return Err(format!("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {paths}"));
    }
    typed.merge(&mut object, configuration);
    Ok(object)
}

/// The paths of atomic lists, maps and structs in `value`. As upstream, what lies below a map's keys is not looked at.
fn find_atomics(schema: &Schema, ty: Type, value: &Value, path: &str, depth: usize, found: &mut Vec<String>) {
    if depth > MAX_DEPTH {
        return;
    }
    let shape = match ty {
        Type::Known(id) => &schema.get(id).shape,
        Type::Deduced => &Shape::Any,
    };
    match (shape, value) {
        (Shape::Object(object), Value::Object(map)) => {
            if object.atomic {
                found.push(path.to_owned());
            }
            for (name, inner) in map {
                if let Some(field) = object.field(name) {
                    find_atomics(schema, Type::Known(field.ty), inner, &format!("{path}.{name}"), depth + 1, found);
                }
            }
        }
        (Shape::Map { atomic: true, .. }, Value::Object(_)) => found.push(path.to_owned()),
        (Shape::List(list), Value::Array(items)) => {
            if list.kind == ListKind::Atomic {
                found.push(path.to_owned());
            }
            for (index, item) in items.iter().enumerate() {
                find_atomics(schema, Type::Known(list.item), item, &format!("{path}[{index}]"), depth + 1, found);
            }
        }
        // Of what no schema describes, lists are atomic.
        (Shape::Any, Value::Array(_)) => found.push(path.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::builtin;

    fn merged(object: Value, configuration: Value) -> Result<Value, String> {
        let row = builtin().get("apps", "v1", "deployments").unwrap();
        merge_mutation(&row.schema, row.root, object, &configuration)
    }

    #[test]
    fn maps_and_keyed_lists_are_merged() {
        let object = json!({
            "metadata": {"annotations": {"a": "1"}},
            "spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "x"}]}}},
        });
        let configuration = json!({
            "metadata": {"annotations": {"b": "2"}},
            "spec": {"replicas": 3, "template": {"spec": {"containers": [
                {"name": "c", "env": [{"name": "K", "value": "v"}]}]}}},
        });
        let merged = merged(object, configuration).unwrap();
        assert_eq!(merged["metadata"]["annotations"], json!({"a": "1", "b": "2"}));
        assert_eq!(merged["spec"]["replicas"], 3);
        let containers = json!([{"name": "c", "image": "x", "env": [{"name": "K", "value": "v"}]}]);
        assert_eq!(merged["spec"]["template"]["spec"]["containers"], containers);
    }

    #[test]
    fn atomic_things_may_not_be_replaced() {
        let configuration = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "args": ["x"]}]}}}});
        let why = merged(json!({}), configuration).unwrap_err();
        let path = ".spec.template.spec.containers[0].args";
        assert_eq!(why, format!("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {path}"));
        let why = merged(json!({}), json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}})).unwrap_err();
        assert!(why.ends_with("structs: .spec.selector"), "{why}");
        let why = merged(json!({}), json!({"spec": {"nothing": 1}})).unwrap_err();
        let expected = "failed to convert patch object to typed object: .spec.nothing: field not declared in schema";
        assert_eq!(why, expected);
    }
}
