//! The objects of one kind in memory, with indexes kept in step. Pure: knows nothing of watches or handlers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::informer::ObjectKey;

/// From an object to the keys it is found under. An object may have none or several.
pub type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

/// Objects by namespace, then name: a namespace is listed, and an object found, without building a key.
pub(crate) struct Cache<K> {
    objects: HashMap<String, HashMap<String, Arc<K>>>,
    indexes: Vec<IndexData<K>>,
}

struct IndexData<K> {
    name: &'static str,
    keys_of: IndexFn<K>,
    /// A bucket is keyed by the address of the object, which is unique while the bucket holds it: the names are not
    /// stored once more, and removal does not search.
    buckets: HashMap<String, HashMap<usize, Arc<K>>>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Cache { objects: HashMap::new(), indexes: Vec::new() }
    }
}

impl<K> Cache<K> {
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.objects.get(namespace)?.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values().flat_map(HashMap::values)
    }

    pub fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        self.objects
            .iter()
            .flat_map(|(namespace, objects)| objects.keys().map(|name| (namespace.clone(), name.clone())))
    }

    pub fn namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        self.objects.get(namespace).into_iter().flat_map(HashMap::values)
    }

    pub fn len(&self) -> usize {
        self.objects.values().map(HashMap::len).sum()
    }

    /// Puts `object` in place of the one of the same key, which is returned.
    pub fn insert(&mut self, key: ObjectKey, object: Arc<K>) -> Option<Arc<K>> {
        let (namespace, name) = key;
        let old = self.objects.entry(namespace).or_default().insert(name, object.clone());
        for index in &mut self.indexes {
            if let Some(old) = &old {
                index.remove(old);
            }
            index.insert(&object);
        }
        old
    }

    pub fn remove(&mut self, (namespace, name): &ObjectKey) -> Option<Arc<K>> {
        let objects = self.objects.get_mut(namespace)?;
        let old = objects.remove(name)?;
        if objects.is_empty() {
            self.objects.remove(namespace);
        }
        for index in &mut self.indexes {
            index.remove(&old);
        }
        Some(old)
    }

    /// Adds an index over what is there and what will come. A name that exists already keeps its first function.
    pub fn add_index(&mut self, name: &'static str, keys_of: IndexFn<K>) {
        if self.indexes.iter().any(|index| index.name == name) {
            return;
        }
        let mut index = IndexData { name, keys_of, buckets: HashMap::new() };
        self.iter().for_each(|object| index.insert(object));
        self.indexes.push(index);
    }

    pub fn indexed(&self, name: &str, key: &str) -> Vec<Arc<K>> {
        self.indexes
            .iter()
            .find(|index| index.name == name)
            .and_then(|index| index.buckets.get(key))
            .map(|bucket| bucket.values().cloned().collect())
            .unwrap_or_default()
    }
}

impl<K> IndexData<K> {
    fn insert(&mut self, object: &Arc<K>) {
        for key in (self.keys_of)(object) {
            self.buckets.entry(key).or_default().insert(Arc::as_ptr(object) as usize, object.clone());
        }
    }

    fn remove(&mut self, object: &Arc<K>) {
        for key in (self.keys_of)(object) {
            if let Some(bucket) = self.buckets.get_mut(&key) {
                bucket.remove(&(Arc::as_ptr(object) as usize));
                if bucket.is_empty() {
                    self.buckets.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Labelled = (String, String, Vec<String>);

    proptest! {
        /// After any history an index holds exactly what a scan would find.
        #[test]
        fn an_index_equals_a_scan(history in proptest::collection::vec(("[ab]", "[xyz]", proptest::collection::vec("[pq]", 0..3), any::<bool>()), 0..40)) {
            let mut cache: Cache<Labelled> = Cache::default();
            for (step, (namespace, name, labels, delete)) in history.into_iter().enumerate() {
                if step == 10 {
                    cache.add_index("label", Box::new(|object: &Labelled| object.2.clone()));
                }
                let key = (namespace.clone(), name.clone());
                if delete {
                    cache.remove(&key);
                } else {
                    cache.insert(key, Arc::new((namespace, name, labels)));
                }
            }
            cache.add_index("label", Box::new(|object: &Labelled| object.2.clone()));
            for label in ["p", "q"] {
                let mut found: Vec<_> = cache.indexed("label", label).iter().map(|o| (o.0.clone(), o.1.clone())).collect();
                let mut scanned: Vec<_> = cache.iter().filter(|o| o.2.iter().any(|l| l == label)).map(|o| (o.0.clone(), o.1.clone())).collect();
                found.sort();
                scanned.sort();
                prop_assert_eq!(found, scanned);
            }
            prop_assert_eq!(cache.keys().count(), cache.len());
        }
    }
}
