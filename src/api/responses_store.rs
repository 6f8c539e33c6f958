//! Responses that are kept for later requests: in memory, bounded in number and bytes, each tenant's apart from the others'.
//!
//! Pure: no locks, no clocks. A conversation is a list of items that its responses share, so an item takes its bytes once
//! however many responses have it. Where a bound is passed, the tenant that holds most loses what it used least recently:
//! one may have everything while the others leave it, and none can push out the share of another.
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What an item takes beside its text, about: two shared texts, and an entry in a table.
const ITEM_COST: usize = 256;
/// What a response takes beside its text and its list of items, about.
const RESPONSE_COST: usize = 512;

/// An item of a conversation. An id is given by the server, once, and stands for this text forever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: Arc<str>,
    /// A JSON object without the id.
    pub(crate) json: Arc<str>,
}

impl Item {
    fn cost(&self) -> usize {
        self.id.len() + self.json.len() + ITEM_COST
    }
}

/// A response that is kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    /// The response object, as JSON.
    pub(crate) body: Arc<str>,
    /// The whole conversation: what earlier responses had, the input, the output.
    pub(crate) items: Arc<[Item]>,
    /// How many of the items come before the output.
    pub(crate) inputs: usize,
}

impl Kept {
    /// Without the items, which others may share.
    fn cost(&self) -> usize {
        self.body.len() + self.items.len() * size_of::<Item>() + RESPONSE_COST
    }
}

/// What a tenant has in the store.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) responses: usize,
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

/// Everything that is kept.
pub(crate) struct Store {
    responses_max: usize,
    bytes_max: usize,
    shelves: HashMap<String, Shelf>,
    /// Counts uses.
    now: u64,
}

/// A tenant's part.
#[derive(Default)]
struct Shelf {
    responses: HashMap<String, Placed>,
    /// When a response was used last → its id.
    used: BTreeMap<u64, String>,
    /// With the number of times that responses have them.
    items: HashMap<Arc<str>, (Item, usize)>,
    bytes: usize,
}

struct Placed {
    kept: Kept,
    used: u64,
}

impl Store {
    pub(crate) fn new(responses_max: usize, bytes_max: usize) -> Self {
        Self { responses_max, bytes_max, shelves: HashMap::new(), now: 0 }
    }

    /// Keeps a response, and drops others as far as there is no room. False if it is not kept: it is larger than the whole
    /// store, or than what the other tenants leave of it.
    pub(crate) fn keep(&mut self, tenant: &str, id: &str, kept: Kept) -> bool {
        let alone = kept.cost() + kept.items.iter().map(Item::cost).sum::<usize>();
        // No other tenant gives up so much that it has less than this one.
        let others = self.shelves.iter().filter(|(name, _)| *name != tenant);
        if alone + others.map(|(_, shelf)| shelf.bytes.min(alone)).sum::<usize>() > self.bytes_max {
            return false;
        }
        self.now += 1;
        let shelf = self.shelves.entry(tenant.to_owned()).or_default();
        shelf.take(id);
        shelf.put(id, kept, self.now);
        while self.total(Shelf::count) > self.responses_max {
            self.drop_one(Shelf::count);
        }
        while self.total(Shelf::bytes) > self.bytes_max {
            self.drop_one(Shelf::bytes);
        }
        true
    }

    /// A tenant's response, which is used by this.
    pub(crate) fn get(&mut self, tenant: &str, id: &str) -> Option<Kept> {
        self.now += 1;
        self.shelves.get_mut(tenant)?.touch(id, self.now)
    }

    /// An item of any of a tenant's responses.
    pub(crate) fn item(&self, tenant: &str, id: &str) -> Option<Item> {
        let (item, _) = self.shelves.get(tenant)?.items.get(id)?;
        Some(item.clone())
    }

    /// Drops a tenant's response; items that other responses have stay. False if there is none.
    pub(crate) fn delete(&mut self, tenant: &str, id: &str) -> bool {
        self.shelves.get_mut(tenant).is_some_and(|shelf| shelf.take(id))
    }

    /// Who holds what: every tenant that has ever kept something.
    pub(crate) fn held(&self) -> impl Iterator<Item = (&str, Held)> {
        self.shelves.iter().map(|(tenant, shelf)| {
            let held = Held { responses: shelf.count(), items: shelf.items.len(), bytes: shelf.bytes };
            (tenant.as_str(), held)
        })
    }

    fn total(&self, of: fn(&Shelf) -> usize) -> usize {
        self.shelves.values().map(of).sum()
    }

    /// Drops the least recently used response of the tenant that has most; of the one that waits longest, where several do.
    fn drop_one(&mut self, of: fn(&Shelf) -> usize) {
        let filled = self.shelves.values_mut().filter(|shelf| !shelf.used.is_empty());
        let most = filled.max_by_key(|shelf| (of(shelf), shelf.used.keys().next().copied().map(Reverse)));
        let shelf = most.expect("a store beyond its bounds that holds nothing is a bug");
        let oldest = shelf.used.values().next().cloned().unwrap_or_default();
        shelf.take(&oldest);
    }
}

impl Shelf {
    fn count(&self) -> usize {
        self.responses.len()
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn put(&mut self, id: &str, kept: Kept, now: u64) {
        self.bytes += kept.cost();
        for item in kept.items.iter() {
            let (_, users) = self.items.entry(Arc::clone(&item.id)).or_insert_with(|| {
                self.bytes += item.cost();
                (item.clone(), 0)
            });
            *users += 1;
        }
        self.used.insert(now, id.to_owned());
        self.responses.insert(id.to_owned(), Placed { kept, used: now });
    }

    fn take(&mut self, id: &str) -> bool {
        let Some(Placed { kept, used }) = self.responses.remove(id) else { return false };
        self.used.remove(&used);
        self.bytes -= kept.cost();
        for item in kept.items.iter() {
            if let Some((_, users)) = self.items.get_mut(&item.id) {
                *users -= 1;
                if *users == 0 {
                    self.items.remove(&item.id);
                    self.bytes -= item.cost();
                }
            }
        }
        true
    }

    fn touch(&mut self, id: &str, now: u64) -> Option<Kept> {
        let placed = self.responses.get_mut(id)?;
        self.used.remove(&placed.used);
        self.used.insert(now, id.to_owned());
        placed.used = now;
        Some(placed.kept.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(id: &str, bytes: usize) -> Item {
        Item { id: id.into(), json: "x".repeat(bytes).into() }
    }

    fn kept(items: &[Item]) -> Kept {
        Kept { body: "{}".into(), items: items.into(), inputs: 0 }
    }

    /// Which of these a tenant has.
    fn has<'i>(store: &Store, tenant: &str, ids: &[&'i str]) -> Vec<&'i str> {
        let shelf = store.shelves.get(tenant);
        ids.iter().copied().filter(|id| shelf.is_some_and(|shelf| shelf.responses.contains_key(*id))).collect()
    }

    fn bytes(store: &Store) -> usize {
        store.held().map(|(_, held)| held.bytes).sum()
    }

    #[test]
    fn the_least_recently_used_response_goes_first() {
        let mut store = Store::new(2, usize::MAX);
        assert!(store.keep("t", "a", kept(&[])));
        assert!(store.keep("t", "b", kept(&[])));
        assert!(store.get("t", "a").is_some());
        assert!(store.keep("t", "c", kept(&[])));
        assert_eq!(has(&store, "t", &["a", "b", "c"]), ["a", "c"]);
        // Looking for what is not there uses nothing.
        assert!(store.get("t", "b").is_none() && store.get("nobody", "a").is_none());
        assert!(store.keep("t", "d", kept(&[])));
        assert_eq!(has(&store, "t", &["a", "c", "d"]), ["c", "d"]);
    }

    #[test]
    fn bytes_are_bounded_and_what_is_shared_counts_once() {
        let shared = item("shared", 10_000);
        let alone = kept(std::slice::from_ref(&shared)).cost() + shared.cost();
        let mut store = Store::new(100, 2 * alone - 1);
        for id in ["a", "b", "c", "d"] {
            assert!(store.keep("t", id, kept(std::slice::from_ref(&shared))));
        }
        assert_eq!(has(&store, "t", &["a", "b", "c", "d"]).len(), 4);
        assert_eq!(bytes(&store), alone + 3 * kept(std::slice::from_ref(&shared)).cost());
        // Another of its size leaves the first less than it takes, and then they go together.
        assert!(store.keep("t", "e", kept(&[item("second", 10_000)])));
        assert_eq!(has(&store, "t", &["a", "b", "c", "d", "e"]), ["e"]);
        assert!(store.item("t", "shared").is_none() && store.item("t", "second").is_some());
        assert_eq!(bytes(&store), kept(&[item("second", 10_000)]).cost() + item("second", 10_000).cost());
    }

    #[test]
    fn what_is_larger_than_the_store_pushes_nothing_out() {
        let mut store = Store::new(10, 5_000);
        assert!(store.keep("t", "small", kept(&[item("i", 100)])));
        assert!(!store.keep("t", "large", kept(&[item("j", 5_000)])));
        assert_eq!(has(&store, "t", &["small", "large"]), ["small"]);
        assert!(store.item("t", "j").is_none());
        // Items that are named often make a response large, too.
        let often = vec![item("i", 100); 1000];
        assert!(!store.keep("t", "often", kept(&often)));
    }

    #[test]
    fn tenants_see_their_own_and_keep_their_share() {
        let mut store = Store::new(4, usize::MAX);
        for id in ["a1", "a2", "a3", "a4"] {
            store.keep("a", id, kept(&[item("i", 1)]));
        }
        assert!(store.get("b", "a4").is_none() && store.item("b", "i").is_none() && !store.delete("b", "a4"));
        for id in ["b1", "b2", "b3", "b4", "b5"] {
            assert!(store.keep("b", id, kept(&[])));
        }
        assert_eq!(has(&store, "a", &["a1", "a2", "a3", "a4"]), ["a3", "a4"]);
        assert_eq!(has(&store, "b", &["b1", "b2", "b3", "b4", "b5"]), ["b4", "b5"]);

        let mut store = Store::new(100, 40_000);
        for id in ["a1", "a2", "a3"] {
            store.keep("a", id, kept(&[item(id, 9_000)]));
        }
        for id in ["b1", "b2", "b3", "b4", "b5"] {
            assert!(store.keep("b", id, kept(&[item(id, 9_000)])));
        }
        assert_eq!(has(&store, "a", &["a1", "a2", "a3"]), ["a2", "a3"]);
        // What has no place beside the other tenant's share pushes nothing out.
        assert!(!store.keep("b", "b6", kept(&[item("b6", 30_000)])));
        assert_eq!(has(&store, "b", &["b3", "b4", "b5"]), ["b4", "b5"]);
        assert_eq!(has(&store, "a", &["a1", "a2", "a3"]), ["a2", "a3"]);
    }

    #[test]
    fn a_deleted_response_leaves_what_others_have() {
        let mut store = Store::new(10, usize::MAX);
        let (first, second) = (item("1", 10), item("2", 10));
        store.keep("t", "a", kept(std::slice::from_ref(&first)));
        store.keep("t", "b", kept(&[first.clone(), second.clone(), first.clone()]));
        assert!(store.delete("t", "a") && !store.delete("t", "a"));
        assert_eq!(store.item("t", "1"), Some(first));
        assert!(store.delete("t", "b"));
        assert_eq!(store.item("t", "1"), None);
        assert_eq!(store.held().collect::<Vec<_>>(), [("t", Held::default())]);
    }

    proptest! {
        /// Whatever comes in which order: the bounds hold, and the counts are those of what is there.
        #[test]
        fn bounds_hold_and_counts_are_true(
            steps in prop::collection::vec((0..3_usize, 0..12_usize, prop::collection::vec(0..8_usize, 0..5), 0..4_u8), 1..200),
        ) {
            let mut store = Store::new(5, 9_000);
            for (tenant, id, items, action) in steps {
                let (tenant, id) = (["a", "b", "c"][tenant], id.to_string());
                match action {
                    0 => drop(store.get(tenant, &id)),
                    1 => drop(store.delete(tenant, &id)),
                    _ => {
                        let items: Vec<Item> = items.iter().map(|size| item(&size.to_string(), size * 300)).collect();
                        store.keep(tenant, &id, kept(&items));
                    }
                }
                prop_assert!(store.total(Shelf::count) <= 5 && bytes(&store) <= 9_000);
                for shelf in store.shelves.values() {
                    prop_assert_eq!(shelf.used.len(), shelf.responses.len());
                    let listed = || shelf.responses.values().flat_map(|placed| placed.kept.items.iter());
                    prop_assert_eq!(listed().count(), shelf.items.values().map(|(_, users)| users).sum::<usize>());
                    prop_assert!(listed().all(|item| shelf.items[&item.id].0 == *item));
                    let own: usize = shelf.responses.values().map(|placed| placed.kept.cost()).sum();
                    prop_assert_eq!(shelf.bytes, own + shelf.items.values().map(|(item, _)| item.cost()).sum::<usize>());
                }
            }
        }
    }
}
