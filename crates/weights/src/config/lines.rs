//! The table `lines` of a merge's file.

use luthier_core::Result;
use serde_json::{Map, Value};

use super::Reader;
use crate::{
    combine::lines::{Outside, Schedule},
    method::{Base, Spec},
};

impl Reader<'_> {
    pub(super) fn lines(&self, map: &Map<String, Value>, spec: &Spec) -> Result<Option<Schedule>> {
        let table = match map.get("lines") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(table)) => table,
            Some(other) => {
                let what = format!("expected alpha and beta, got {other}");
                return Err(self.error("lines", what).hint("lines: {alpha: 0.2, beta: 0.8}"));
            }
        };
        self.known(table, "lines", &["alpha", "beta", "outside"])?;
        if spec.base == Base::Ordinary {
            let what = format!("scales what a merge changes of a base; {} has none", spec.name);
            return Err(self.error("lines", what).hint(
                "task_arithmetic with weights of 1/k is a \
                mean that works from a base",
            ));
        }
        let number = |key: &str| match table.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(Some(x)),
                None => {
                    let what = format!("expected a number, got {value}");
                    Err(self.error(&format!("lines.{key}"), what))
                }
            },
        };
        let beta = number("beta")?;
        let alpha = match table.get("alpha").and_then(Value::as_str) {
            Some("auto") if beta.is_none() => {
                let what = "is missing, and does not follow from alpha: auto";
                return Err(self.error("lines.beta", what));
            }
            Some("auto") => None,
            _ => match number("alpha")? {
                Some(alpha) => Some(alpha),
                None => {
                    return Err(self.error("lines.alpha", "is missing").hint("a number, or auto"));
                }
            },
        };
        let outside = match self.text(table, "outside", "lines.outside")?.as_deref() {
            None | Some("alpha") => Outside::Alpha,
            Some("one") => Outside::One,
            Some("deep") => Outside::Deep,
            Some(other) => {
                let what = format!("expected alpha, one or deep, got {other:?}");
                return Err(self.error("lines.outside", what));
            }
        };
        Ok(Some(Schedule { alpha, beta, outside }))
    }
}
