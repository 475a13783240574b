//! The heads of a bundle, at most one for each shape, so placed that those of a set of shapes are found without looking
//! at the others.

use crate::region::fits::ShapeSet;
use crate::region::order::Head;
use crate::region::queue::LineId;
use crate::region::shape::ShapeId;

/// Shapes that share a word of bits.
const WIDTH: u32 = u64::BITS;

#[derive(Clone, Debug, Default)]
pub(super) struct Heads {
    /// By number; those without heads are not there.
    words: Vec<Word>,
}

/// The heads of the shapes 64 × `number` and following.
#[derive(Clone, Debug)]
struct Word {
    number: u32,
    present: u64,
    /// Those of which a limit keeps the head back.
    limited: u64,
    /// Where the head of each shape lies.
    at: [u8; WIDTH as usize],
    heads: Vec<Head>,
    /// When each head was queued, in milliseconds, closely together for a quick look.
    ages: Vec<u64>,
}

impl Heads {
    /// The head of a shape has changed; a new first one is not kept back by a limit, as far as is known.
    pub(super) fn change(&mut self, before: Option<Head>, after: Option<Head>) {
        match (before, after) {
            (None, None) => {}
            (None, Some(after)) => self.insert(after),
            (Some(before), None) => self.remove(before.shape),
            (Some(before), Some(after)) => self.replace(&before, after),
        }
    }

    /// The oldest head of these shapes.
    pub(super) fn first(&self, shapes: &ShapeSet) -> Option<Head> {
        let mut best: Option<&Head> = None;
        let mut oldest = u64::MAX;
        for word in &self.words {
            for bit in bits(word.present & shapes.word(word.number)) {
                let place = usize::from(word.at[bit]);
                if word.ages[place] > oldest {
                    continue;
                }
                let head = &word.heads[place];
                if best.is_none_or(|best| head < best) {
                    (best, oldest) = (Some(head), word.ages[place]);
                }
            }
        }
        best.copied()
    }

    /// The heads of these shapes.
    pub(super) fn all<'a>(&'a self, shapes: &'a ShapeSet) -> impl Iterator<Item = Head> + 'a {
        let found = |word: &'a Word| bits(word.present & shapes.word(word.number)).map(|bit| *word.head(bit));
        self.words.iter().flat_map(found)
    }

    /// A limit keeps back the heads of these shapes; says whether there are any.
    pub(super) fn limit(&mut self, shapes: &ShapeSet) -> bool {
        let mut any = false;
        for word in &mut self.words {
            let met = word.present & shapes.word(word.number);
            word.limited |= met;
            any |= met != 0;
        }
        any
    }

    /// A limit keeps back the head of this shape.
    pub(super) fn limit_one(&mut self, shape: ShapeId) {
        if let Some(word) = self.position(shape).ok().and_then(|at| self.words.get_mut(at)) {
            word.limited |= word.present & mask(shape);
        }
    }

    /// The lines that were kept back by a limit; they are no more.
    pub(super) fn lift(&mut self) -> impl Iterator<Item = LineId> + '_ {
        self.words.iter_mut().flat_map(|word| {
            let lifted = std::mem::take(&mut word.limited);
            let word: &Word = word;
            bits(lifted).map(move |bit| word.head(bit).line)
        })
    }

    fn insert(&mut self, head: Head) {
        let at = match self.position(head.shape) {
            Ok(at) => at,
            Err(at) => {
                self.words.insert(at, Word::new(head.shape.number() / WIDTH));
                at
            }
        };
        self.words[at].insert(head);
    }

    fn remove(&mut self, shape: ShapeId) {
        let Ok(at) = self.position(shape) else { return };
        self.words[at].remove(shape);
        if self.words[at].present == 0 {
            self.words.remove(at);
        }
    }

    fn replace(&mut self, before: &Head, after: Head) {
        let Ok(at) = self.position(before.shape) else { return };
        let word = &mut self.words[at];
        let place = usize::from(word.at[bit_of(before.shape)]);
        (word.heads[place], word.ages[place]) = (after, after.queued_at.as_millis());
        if after < *before {
            word.limited &= !mask(before.shape);
        }
    }

    fn position(&self, shape: ShapeId) -> Result<usize, usize> {
        let number = shape.number() / WIDTH;
        self.words.binary_search_by_key(&number, |word| word.number)
    }
}

impl Word {
    const fn new(number: u32) -> Self {
        Self { number, present: 0, limited: 0, at: [0; WIDTH as usize], heads: Vec::new(), ages: Vec::new() }
    }

    fn head(&self, bit: usize) -> &Head {
        &self.heads[usize::from(self.at[bit])]
    }

    fn insert(&mut self, head: Head) {
        self.present |= mask(head.shape);
        self.at[bit_of(head.shape)] = u8::try_from(self.heads.len()).expect("at most 64 heads");
        self.heads.push(head);
        self.ages.push(head.queued_at.as_millis());
    }

    fn remove(&mut self, shape: ShapeId) {
        self.present &= !mask(shape);
        self.limited &= !mask(shape);
        let place = self.at[bit_of(shape)];
        self.heads.swap_remove(usize::from(place));
        self.ages.swap_remove(usize::from(place));
        if let Some(moved) = self.heads.get(usize::from(place)) {
            self.at[bit_of(moved.shape)] = place;
        }
    }
}

const fn bit_of(shape: ShapeId) -> usize {
    (shape.number() % WIDTH) as usize
}

const fn mask(shape: ShapeId) -> u64 {
    1 << (shape.number() % WIDTH)
}

/// The places of the bits that are set.
fn bits(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = set.trailing_zeros() as usize;
        (set != 0).then(|| {
            set &= set - 1;
            bit
        })
    })
}
