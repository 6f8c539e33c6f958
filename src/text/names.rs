//! Tokens by name.
use std::hash::{DefaultHasher, Hasher};

use crate::weights::gguf::Strings;

/// The tokens of a vocabulary, id after id, some of which are found by name: a table of numbers, without an allocation for each string.
pub struct Names {
    tokens: Strings,
    /// An id or `FREE`; a name is looked for from its hash on, up to the next free place. A power of two, at least half of them free.
    places: Box<[u32]>,
}

const FREE: u32 = u32::MAX;

impl Names {
    /// `tokens[id]` is found by name if `named(id)`. Of equal ones the first counts.
    ///
    /// # Panics
    /// For `u32::MAX` tokens or more.
    pub fn new(tokens: Strings, named: impl Fn(usize) -> bool) -> Self {
        let places = vec![FREE; (2 * tokens.len() + 1).next_power_of_two()].into();
        let mut names = Self { tokens, places };
        for id in (0..names.tokens.len()).filter(|&id| named(id)) {
            let place = names.place(names.token(id));
            if names.places[place] == FREE {
                names.places[place] = u32::try_from(id).expect("more tokens than ids is a bug");
            }
        }
        names
    }

    /// The id of a token.
    pub fn id(&self, name: &str) -> Option<u32> {
        Some(self.places[self.place(name)]).filter(|&id| id != FREE)
    }

    /// All names and their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.places.iter().filter(|&&id| id != FREE).map(|&id| (self.token(id as usize), id))
    }

    fn token(&self, id: usize) -> &str {
        self.tokens.get(id).expect("an id beyond the vocabulary is a bug")
    }

    /// Where a name is, or would be.
    fn place(&self, name: &str) -> usize {
        let mut hasher = DefaultHasher::new();
        hasher.write(name.as_bytes());
        let mask = self.places.len() - 1;
        let mut place = hasher.finish() as usize & mask;
        while self.places[place] != FREE && self.token(self.places[place] as usize) != name {
            place = (place + 1) & mask;
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_the_first_of_equal_ones_counts() {
        let tokens: Strings = ["a", "", "b", "a", "hidden", "b"].into_iter().collect();
        let names = Names::new(tokens, |id| id != 4);
        assert_eq!(["a", "", "b", "hidden", "c"].map(|name| names.id(name)), [Some(0), Some(1), Some(2), None, None]);
        assert_eq!(names.iter().count(), 3);
        assert_eq!(Names::new(Strings::default(), |_| true).id(""), None);
        let many: Strings = (0..10_000).map(|i| i.to_string()).collect();
        let names = Names::new(many, |id| id.is_multiple_of(2));
        assert!((0..10_000).all(|i: u32| names.id(&i.to_string()) == i.is_multiple_of(2).then_some(i)));
    }
}
