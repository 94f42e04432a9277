//! All rows that are served at one moment, with the look-ups that requests need.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use super::ResourceRow;

/// Rows by resource and by kind. Cheap to clone: a change of the served resources is a changed clone.
#[derive(Clone, Debug, Default)]
pub struct ResourceTable {
    /// In discovery order: built-in groups as upstream ranks them, then custom groups by name; preferred versions first.
    rows: Vec<Arc<ResourceRow>>,
    by_plural: HashMap<Box<str>, Vec<Arc<ResourceRow>>>,
    by_kind: HashMap<Box<str>, Vec<Arc<ResourceRow>>>,
    generation: u64,
}

/// An API group with its served versions, preferred first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    /// Empty for the core group.
    pub name: &'a str,
    pub versions: Vec<&'a str>,
}

impl ResourceTable {
    pub fn rows(&self) -> impl Iterator<Item = &Arc<ResourceRow>> {
        self.rows.iter()
    }

    /// The row of a request path: `/apis/GROUP/VERSION/…/PLURAL`.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<ResourceRow>> {
        self.by_plural.get(plural)?.iter().find(|row| *row.version == *version && *row.group == *group)
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<ResourceRow>> {
        self.by_kind.get(kind)?.iter().find(|row| *row.version == *version && *row.group == *group)
    }

    /// The preferred served version of a resource.
    pub fn preferred(&self, group: &str, plural: &str) -> Option<&Arc<ResourceRow>> {
        self.by_plural.get(plural)?.iter().find(|row| *row.group == *group)
    }

    /// Grows with every change of this table and of what is cloned from it; what is derived from a table can be kept by it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Groups in discovery order.
    pub fn groups(&self) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|group| *group.name == *row.group) {
                Some(group) if group.versions.contains(&&*row.version) => {}
                Some(group) => group.versions.push(&row.version),
                None => groups.push(Group { name: &row.group, versions: vec![&row.version] }),
            }
        }
        groups
    }

    /// The rows of one group-version.
    pub fn group_version(&self, group: &str, version: &str) -> impl Iterator<Item = &Arc<ResourceRow>> {
        self.rows.iter().filter(move |row| *row.group == *group && *row.version == *version)
    }

    /// The row in whose form objects of `row` are stored: `row` itself for most. Served versions of one resource share storage, and
    /// so do the two groups of events.
    pub fn storage_row<'a>(&'a self, row: &'a Arc<ResourceRow>) -> &'a Arc<ResourceRow> {
        let siblings = self.by_plural.get(&row.plural).map(Vec::as_slice).unwrap_or_default();
        let shares = |other: &&Arc<ResourceRow>| {
            other.storage_prefix == row.storage_prefix && other.version == row.storage_version
        };
        siblings.iter().find(shares).unwrap_or(row)
    }

    /// Adds a row, or replaces that of the same group, version and plural.
    pub fn insert(&mut self, row: Arc<ResourceRow>) {
        self.remove_if(|r| r.group == row.group && r.version == row.version && r.plural == row.plural);
        let at =
            if row.custom { self.rows.partition_point(|r| discovery_order(r, &row).is_lt()) } else { self.rows.len() };
        self.rows.insert(at, row);
        self.index();
    }

    /// Removes every version of a resource.
    pub fn remove(&mut self, group: &str, plural: &str) {
        self.remove_if(|row| *row.group == *group && *row.plural == *plural);
        self.index();
    }

    fn remove_if(&mut self, matches: impl Fn(&ResourceRow) -> bool) {
        self.rows.retain(|row| !matches(row));
    }

    fn index(&mut self) {
        self.generation += 1;
        self.by_plural.clear();
        self.by_kind.clear();
        for row in &self.rows {
            self.by_plural.entry(row.plural.clone()).or_default().push(row.clone());
            self.by_kind.entry(row.kind.clone()).or_default().push(row.clone());
        }
    }
}

/// Order among custom rows; built-in ones come before them in the order they were added.
fn discovery_order(a: &ResourceRow, b: &ResourceRow) -> Ordering {
    a.custom.cmp(&b.custom).then_with(|| {
        if !a.custom {
            return Ordering::Equal;
        }
        (a.group.cmp(&b.group))
            .then_with(|| version_order(&a.version, &b.version))
            .then_with(|| a.plural.cmp(&b.plural))
    })
}

/// Preferred versions first: `v2`, `v1`, `v1beta2`, `v1alpha1`, then others by name (upstream's CompareKubeAwareVersionStrings).
pub fn version_order(a: &str, b: &str) -> Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// (stability, major, minor): later compares greater.
fn parse_version(text: &str) -> Option<(u8, u64, u64)> {
    let rest = text.strip_prefix('v')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let number = |text: &str| (!text.is_empty() && !text.starts_with('0')).then(|| text.parse().ok()).flatten();
    let major = number(&rest[..digits])?;
    let rest = &rest[digits..];
    if rest.is_empty() {
        return Some((2, major, 0));
    }
    let (stability, minor) = match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
        (Some(minor), _) => (1, minor),
        (_, Some(minor)) => (0, minor),
        _ => return None,
    };
    Some((stability, major, number(minor)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::builtin;

    #[test]
    fn versions_sort_by_stability_then_number() {
        let mut versions = ["foo", "v1", "v10", "v2", "v2beta1", "v10beta3", "v3alpha1", "bar", "v1beta1", "v01"];
        versions.sort_by(|a, b| version_order(a, b));
        assert_eq!(versions, ["v10", "v2", "v1", "v10beta3", "v2beta1", "v1beta1", "v3alpha1", "bar", "foo", "v01"]);
    }

    #[test]
    fn rows_come_and_go_at_run_time() {
        let mut table = builtin().clone();
        let before = table.rows().count();
        let custom = |group: &str, version: &str| {
            let mut row = (**table.get("", "v1", "configmaps").unwrap()).clone();
            (row.group, row.version, row.custom) = (group.into(), version.into(), true);
            (row.plural, row.kind) = ("widgets".into(), "Widget".into());
            Arc::new(row)
        };
        let rows = [custom("z.example.com", "v1beta1"), custom("a.example.com", "v1"), custom("z.example.com", "v1")];
        rows.iter().chain(&rows).for_each(|row| table.insert(row.clone()));
        let groups: Vec<_> = table.groups().into_iter().map(|g| (g.name, g.versions)).collect();
        assert_eq!(
            groups[groups.len() - 2..],
            [("a.example.com", vec!["v1"]), ("z.example.com", vec!["v1", "v1beta1"])]
        );
        assert!(table.generation() > builtin().generation());
        assert_eq!(&*table.preferred("z.example.com", "widgets").unwrap().version, "v1");
        assert!(table.by_kind("z.example.com", "v1beta1", "Widget").is_some());
        table.remove("z.example.com", "widgets");
        table.remove("a.example.com", "widgets");
        assert_eq!(table.rows().count(), before);
        assert!(table.get("a.example.com", "v1", "widgets").is_none());
    }
}
