//! A small cache that forgets what was not used for longest.
use std::collections::HashMap;
use std::hash::Hash;

/// At most so many entries, and of so much weight together. The newest entry stays whatever it weighs.
#[derive(Debug)]
pub struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    entries_max: usize,
    weight_max: usize,
    weight: usize,
    uses: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    weight: usize,
    used: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> Lru<K, V> {
    #[must_use]
    pub fn new(entries_max: usize, weight_max: usize) -> Self {
        Self { entries: HashMap::new(), entries_max, weight_max, weight: 0, uses: 0 }
    }

    /// Finds an entry, which is now the one used last.
    pub fn get(&mut self, key: &K) -> Option<V> {
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.uses;
        Some(entry.value.clone())
    }

    /// Adds an entry, or replaces it, and makes room for it.
    pub fn insert(&mut self, key: K, value: V, weight: usize) {
        self.uses += 1;
        let entry = Entry { value, weight, used: self.uses };
        self.weight += weight;
        if let Some(old) = self.entries.insert(key, entry) {
            self.weight -= old.weight;
        }
        while self.entries.len() > 1 && (self.entries.len() > self.entries_max || self.weight > self.weight_max) {
            let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone())
            else {
                return;
            };
            self.remove(&oldest);
        }
    }

    /// Forgets an entry.
    pub fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.weight -= entry.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = Lru::new(2, 100);
        lru.insert("a", 1, 1);
        lru.insert("b", 2, 1);
        assert_eq!(lru.get(&"a"), Some(1));
        lru.insert("c", 3, 1);
        assert_eq!((lru.get(&"a"), lru.get(&"b"), lru.get(&"c")), (Some(1), None, Some(3)));
    }

    #[test]
    fn weight_is_bounded_and_freed() {
        let mut lru = Lru::new(10, 10);
        lru.insert("a", 1, 6);
        lru.insert("b", 2, 6);
        assert_eq!((lru.get(&"a"), lru.get(&"b")), (None, Some(2)));
        lru.insert("b", 3, 2);
        lru.insert("c", 4, 8);
        assert_eq!((lru.get(&"b"), lru.get(&"c")), (Some(3), Some(4)));
        lru.insert("huge", 5, 1000);
        assert_eq!((lru.get(&"b"), lru.get(&"c"), lru.get(&"huge")), (None, None, Some(5)));
        lru.insert("d", 6, 1);
        assert_eq!((lru.get(&"huge"), lru.get(&"d")), (None, Some(6)));
    }
}
