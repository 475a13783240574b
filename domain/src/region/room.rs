//! What is free on each instance, packed closely, so that a look over ten thousand instances touches little memory.
//!
//! Instances are looked at in blocks; a block whose most generous instance in each resource is too small for a request
//! is passed over at once.

use crate::resources::Resources;

const BLOCK: usize = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    free: Resources,
    open: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    rows: Vec<Row>,
    /// In each resource the most that an open row of the block has.
    most: Vec<Resources>,
}

impl Room {
    /// What is free in `row`; `None` when it takes no work.
    pub(super) fn set(&mut self, row: u32, free: Option<Resources>) {
        let index = row as usize;
        if index >= self.rows.len() {
            self.rows.resize(index + 1, Row::default());
            self.most.resize(self.rows.len().div_ceil(BLOCK), Resources::ZERO);
        }
        self.rows[index] = Row { free: free.unwrap_or(Resources::ZERO), open: free.is_some() };
        let block = index / BLOCK;
        let rows = &self.rows[block * BLOCK..self.rows.len().min((block + 1) * BLOCK)];
        self.most[block] = rows.iter().fold(Resources::ZERO, |most, row| most.max_each(&row.free));
    }

    /// What is free in `row`, if it takes work.
    pub(super) fn free(&self, row: u32) -> Option<Resources> {
        self.rows.get(row as usize).filter(|row| row.open).map(|row| row.free)
    }

    /// The rows in which `need` is free.
    pub(super) fn fitting<'a>(&'a self, need: &'a Resources) -> impl Iterator<Item = u32> + 'a {
        let blocks = self.most.iter().enumerate().filter(|(_, most)| need.fits_in(most));
        blocks.flat_map(move |(block, _)| {
            let first = block * BLOCK;
            let rows = &self.rows[first..self.rows.len().min(first + BLOCK)];
            let fit = rows.iter().enumerate().filter(|(_, row)| row.open && need.fits_in(&row.free));
            fit.map(move |(index, _)| u32::try_from(first + index).expect("rows are counted in 32 bits"))
        })
    }
}
