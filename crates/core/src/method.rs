//! One line of a seam's table of methods.

use serde::Serialize;

/// Something a recipe or the command line can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Method {
    /// Number in the list of papers; `None` for what everybody uses.
    pub paper: Option<u32>,
    /// Its key in a recipe.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
}

impl Method {
    /// The method of a paper.
    pub const fn of(paper: u32, name: &'static str, about: &'static str) -> Self {
        Method { paper: Some(paper), name, about }
    }

    /// A method that everybody uses.
    pub const fn usual(name: &'static str, about: &'static str) -> Self {
        Method { paper: None, name, about }
    }
}
