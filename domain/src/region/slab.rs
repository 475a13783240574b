//! Values with small numbers; the number of a value that is gone is given out again.

use std::hint::black_box;
use std::ops::{Index, IndexMut};

#[derive(Clone, Debug)]
pub(super) struct Slab<T> {
    items: Vec<Option<T>>,
    vacant: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { items: Vec::new(), vacant: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Keeps a value; its number is that of the value that left last, or a new one.
    pub(super) fn insert(&mut self, item: T) -> u32 {
        if let Some(number) = self.vacant.pop() {
            self.items[number as usize] = Some(item);
            return number;
        }
        let number = u32::try_from(self.items.len()).expect("fewer than four thousand million values");
        self.items.push(Some(item));
        number
    }

    /// Takes out the value with this number, which is there.
    pub(super) fn remove(&mut self, number: u32) -> T {
        let item = self.items[number as usize].take().expect("a number lives as long as its value");
        self.vacant.push(number);
        item
    }

    /// The value with this number, if there is one.
    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.items.get(number as usize)?.as_ref()
    }

    /// Has the value brought near, so that it is there when it is used a little later; several at a time arrive together.
    pub(super) fn touch(&self, number: u32) {
        black_box(self.items.get(number as usize).is_some_and(Option::is_some));
    }

    /// Every value, by number.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter().flatten()
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, number: u32) -> &T {
        self.items[number as usize].as_ref().expect("a number lives as long as its value")
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, number: u32) -> &mut T {
        self.items[number as usize].as_mut().expect("a number lives as long as its value")
    }
}
