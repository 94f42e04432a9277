//! Rows of the built-in kinds, from `data/resources.txt`, which also explains its format.

use std::sync::{Arc, OnceLock};

use super::{ResourceRow, ResourceTable, Scope, Subresource, Verb};
use crate::schema::{self, Schema};

const RESOURCES: &str = include_str!("../../data/resources.txt");

/// The table of built-in resources, loaded once. Clone it to add rows.
pub fn builtin() -> &'static ResourceTable {
    static BUILTIN: OnceLock<ResourceTable> = OnceLock::new();
    BUILTIN.get_or_init(|| {
        let table = load(RESOURCES, schema::builtin());
        table.unwrap_or_else(|fault| panic!("the built-in resource data is malformed: resources.txt:{fault}"))
    })
}

fn load(text: &str, schema: &Arc<Schema>) -> Result<ResourceTable, String> {
    let mut table = ResourceTable::default();
    let (mut group, mut version) = ("", "");
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["group", name, v, _package] = words[..] {
            (group, version) = (if name == "-" { "" } else { name }, v);
            continue;
        }
        let row = row(group, version, &words, schema).map_err(|fault| format!("{}: {fault}", number + 1))?;
        table.insert(Arc::new(row));
    }
    Ok(table)
}

fn row(group: &str, version: &str, words: &[&str], schema: &Arc<Schema>) -> Result<ResourceRow, String> {
    let [plural, kind, scope, options @ ..] = words else { return Err("want: PLURAL KIND SCOPE …".into()) };
    let root = schema.by_kind(group, version, kind).ok_or_else(|| format!("no definition of {kind}"))?;
    let mut row = ResourceRow {
        group: group.into(),
        version: version.into(),
        kind: (*kind).into(),
        list_kind: format!("{kind}List").into(),
        plural: (*plural).into(),
        singular: kind.to_lowercase().into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope: match *scope {
            "namespaced" => Scope::Namespaced,
            "cluster" => Scope::Cluster,
            _ => return Err(format!("unknown scope {scope:?}")),
        },
        verbs: Verb::ALL.to_vec(),
        subresources: Vec::new(),
        columns: Vec::new(),
        schema: schema.clone(),
        root,
        storage_version: version.into(),
        storage_prefix: (*plural).into(),
        selectable_fields: Vec::new(),
        stored: true,
        custom: false,
    };
    for option in options {
        let list = |text: &str| text.split(',').map(Into::into).collect();
        match option.split_once('=') {
            Some(("short", names)) => row.short_names = list(names),
            Some(("in", names)) => row.categories = list(names),
            Some(("fields", names)) => row.selectable_fields = list(names),
            Some(("verbs", names)) => row.verbs = verbs(names, ',')?,
            Some(("singular", name)) => row.singular = name.into(),
            Some(("key", prefix)) => row.storage_prefix = prefix.into(),
            Some(("store", version)) => row.storage_version = version.into(),
            Some(("sub", list)) => {
                row.subresources = list.split(',').map(|text| subresource(text, &row)).collect::<Result<_, _>>()?;
            }
            None if *option == "unstored" => row.stored = false,
            _ => return Err(format!("unknown option {option:?}")),
        }
    }
    Ok(row)
}

fn verbs(text: &str, separator: char) -> Result<Vec<Verb>, String> {
    let verb =
        |name| Verb::ALL.into_iter().find(|v| v.as_str() == name).ok_or_else(|| format!("unknown verb {name:?}"));
    text.split(separator).map(verb).collect()
}

/// `status`, `scale`, `NAME:verbs`, `NAME=KIND:verbs` or `NAME=GROUP/VERSION/KIND:verbs`
fn subresource(text: &str, parent: &ResourceRow) -> Result<Subresource, String> {
    let (name, served) = match text {
        "status" => (text, "get+patch+update"),
        "scale" => ("scale=autoscaling/v1/Scale", "get+patch+update"),
        _ => text.split_once(':').ok_or_else(|| format!("subresource {text:?} without verbs"))?,
    };
    let (name, body) = name.split_once('=').unwrap_or((name, &parent.kind));
    let parts: Vec<&str> = body.split('/').collect();
    let (group, version, kind) = match parts[..] {
        [group, version, kind] => (group, version, kind),
        _ => (&*parent.group, &*parent.version, body),
    };
    Ok(Subresource {
        name: name.into(),
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        verbs: verbs(served, '+')?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::schema::Shape;

    #[test]
    fn every_row_has_a_schema_with_metadata_and_a_list() {
        for row in builtin().rows() {
            let schema = &row.schema;
            let object = schema.object(row.root).unwrap_or_else(|| panic!("{} is no object", row.kind));
            assert!(object.field("metadata").is_some(), "{} has no metadata", row.kind);
            assert!(!row.has_status() || object.field("status").is_some(), "{} has no status", row.kind);
            if row.verbs.contains(&Verb::List) {
                let list = schema.by_kind(&row.group, &row.version, &row.list_kind);
                let list = list.unwrap_or_else(|| panic!("no {}", row.list_kind));
                let items = schema.object(list).and_then(|o| o.field("items")).unwrap();
                let Shape::List(items) = &schema.get(items.ty).shape else {
                    panic!("items of {} is a list", row.list_kind)
                };
                assert_eq!(items.item, row.root);
            }
        }
    }

    #[test]
    fn names_are_distinct_within_a_group_version() {
        let mut seen = HashSet::new();
        for row in builtin().rows() {
            // The second group of events has the same names: the first in discovery order wins in clients.
            let names = [&row.plural, &row.singular].into_iter().chain(&row.short_names).collect::<HashSet<_>>();
            for name in names {
                assert!(seen.insert((&row.group, &row.version, name)), "{name} twice");
            }
        }
        let short: Vec<_> = builtin()
            .rows()
            .filter(|row| &*row.group != "events.k8s.io" && row.storage_version == row.version)
            .flat_map(|row| row.short_names.iter())
            .collect();
        assert_eq!(short.len(), short.iter().collect::<HashSet<_>>().len(), "a short name twice");
    }

    #[test]
    fn subresource_bodies_exist_where_they_are_objects() {
        for row in builtin().rows() {
            for sub in row.subresources.iter().filter(|s| !s.kind.ends_with("Options")) {
                let found = row.schema.by_kind(&sub.group, &sub.version, &sub.kind);
                assert!(found.is_some(), "{}/{}: no {}", row.plural, sub.name, sub.kind);
            }
        }
    }

    #[test]
    fn rows_that_share_storage_agree_on_it() {
        let table = builtin();
        let stored_as = |group: &str, version: &str, plural: &str| {
            let row = table.get(group, version, plural).unwrap();
            let stored = table.storage_row(row);
            (stored.api_version(), stored.storage_prefix.to_string())
        };
        let hpa = ("autoscaling/v2".to_owned(), "horizontalpodautoscalers".to_owned());
        assert_eq!(stored_as("autoscaling", "v1", "horizontalpodautoscalers"), hpa);
        assert_eq!(stored_as("autoscaling", "v2", "horizontalpodautoscalers"), hpa);
        assert_eq!(stored_as("events.k8s.io", "v1", "events"), ("v1".to_owned(), "events".to_owned()));
        assert_eq!(stored_as("", "v1", "services"), ("v1".to_owned(), "services/specs".to_owned()));
    }

    #[test]
    fn selectable_fields_exist() {
        for row in builtin().rows() {
            for path in row.selectable_fields.iter().filter(|path| ***path != *"status.successful") {
                let mut ty = row.root;
                for name in path.split('.') {
                    let field = row.schema.object(ty).and_then(|o| o.field(name));
                    ty = field.unwrap_or_else(|| panic!("{}: no field {path}", row.kind)).ty;
                }
            }
        }
    }

    #[test]
    fn groups_are_in_discovery_order() {
        let groups: Vec<_> = builtin().groups().into_iter().map(|g| (g.name, g.versions)).collect();
        assert_eq!(groups[..3], [("", vec!["v1"]), ("apiregistration.k8s.io", vec!["v1"]), ("apps", vec!["v1"])]);
        assert!(groups.contains(&("autoscaling", vec!["v2", "v1"])));
    }
}
