//! What one hook leaves for others in the same pass.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use luthier_core::Rows;

/// Values of passes that are under way, several of which may run side by side. A pass is known by its
/// rows; what belongs to rows that are gone is forgotten.
pub(crate) struct Passing<T>(Mutex<Vec<(Weak<Rows>, T)>>);

impl<T> Default for Passing<T> {
    fn default() -> Self {
        Passing(Mutex::new(Vec::new()))
    }
}

impl<T> Passing<T> {
    /// Leaves `value` for the pass over `rows`, in place of what was left before.
    pub(crate) fn put(&self, rows: &Arc<Rows>, value: T) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|(known, _)| known.strong_count() > 0 && !is(known, rows));
        left.push((Arc::downgrade(rows), value));
    }

    /// Takes what was left for the pass over `rows`.
    pub(crate) fn take(&self, rows: &Arc<Rows>) -> Option<T> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = left.iter().position(|(known, _)| is(known, rows))?;
        Some(left.swap_remove(at).1)
    }
}

impl<T: Clone> Passing<T> {
    /// What was left for the pass over `rows`, which stays there.
    pub(crate) fn get(&self, rows: &Arc<Rows>) -> Option<T> {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.iter().find(|(known, _)| is(known, rows)).map(|(_, value)| value.clone())
    }
}

/// The weak reference keeps the place of rows that are gone from being given to others.
fn is(known: &Weak<Rows>, rows: &Arc<Rows>) -> bool {
    std::ptr::eq(known.as_ptr(), Arc::as_ptr(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_told_apart_and_forgotten() {
        let (a, b) = (Arc::new(Rows::single(2)), Arc::new(Rows::single(2)));
        let passing = Passing::default();
        passing.put(&a, 1);
        passing.put(&b, 2);
        passing.put(&a, 3);
        assert_eq!((passing.get(&a), passing.get(&b)), (Some(3), Some(2)));
        assert_eq!((passing.take(&a), passing.take(&a)), (Some(3), None));
        drop(b);
        passing.put(&a, 4);
        assert_eq!(passing.0.lock().unwrap().len(), 1);
    }
}
