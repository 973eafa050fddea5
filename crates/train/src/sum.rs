//! What several shards gave, added up.

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor, bail};
use luthier_core::Result;
use luthier_kernels::{tensor, threads};
use luthier_loss::Log;

use crate::{
    backward::{Gradients, Share},
    step::add_logs,
};

/// Numbers that one task adds: enough to outweigh a task.
const CHUNK: usize = 1 << 16;

/// The objective's sum, logs and gradients over some shards.
#[derive(Default)]
pub(crate) struct Part {
    /// The objective's numerator.
    pub sum: f64,
    /// Numbers for the log.
    pub logs: Vec<Log>,
    /// By name of the variable.
    pub gradients: Gradients,
    /// Whether the gradients lie in memory that nothing else looks at, so that they may grow there.
    /// Those of one shard may share theirs, with one another too.
    own: bool,
}

impl Part {
    /// Counts a shard whose gradients are already in.
    pub fn count(&mut self, share: Share) {
        self.sum += share.sum;
        add_logs(&mut self.logs, &share.logs);
        self.own = false;
    }

    /// The sum of two parts, in the memory of the first where that is possible.
    pub fn add(mut first: Part, mut second: Part) -> Result<Part> {
        if first.gradients.is_empty() && first.logs.is_empty() {
            return Ok(second);
        }
        first.sum += second.sum;
        add_logs(&mut first.logs, &second.logs);
        for (name, sum) in &mut first.gradients {
            match second.gradients.remove(name) {
                Some(new) if first.own => sum.inplace_op2(&new.contiguous()?, &AddTo)?,
                Some(new) => *sum = (&*sum + new)?,
                None if first.own => {}
                None => *sum = copy(sum)?,
            }
        }
        for (name, new) in second.gradients {
            let new = if second.own { new } else { copy(&new)? };
            first.gradients.insert(name, new);
        }
        Ok(Part { own: true, ..first })
    }
}

/// The same numbers in memory of their own.
fn copy(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.contiguous()?.copy()?)
}

/// `sum ← sum + new`, element by element.
pub(crate) struct AddTo;

impl InplaceOp2 for AddTo {
    fn name(&self) -> &'static str {
        "add to"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        new: &CpuStorage,
        new_layout: &Layout,
    ) -> candle_core::Result<()> {
        if sum_layout.shape() != new_layout.shape() {
            bail!("expected {:?}, got {:?}", sum_layout.shape(), new_layout.shape());
        }
        let (CpuStorage::F32(sum), Some((start, end))) = (sum, sum_layout.contiguous_offsets())
        else {
            bail!("expected a contiguous f32 sum")
        };
        let (sum, new) = (&mut sum[start..end], tensor::slice(new, new_layout)?);
        let add = |(sum, new): (&mut [f32], &[f32])| {
            sum.iter_mut().zip(new).for_each(|(sum, new)| *sum += new);
        };
        match sum.len() <= CHUNK {
            true => add((sum, new)),
            false => threads::for_each(sum.chunks_mut(CHUNK).zip(new.chunks(CHUNK)).collect(), add),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn part(sum: f64, gradients: &[(&str, Tensor)]) -> Part {
        let logs = vec![Log { name: "nll", sum, weight: 2.0 }];
        let gradients = gradients.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
        let mut part = Part { gradients, ..Part::default() };
        part.count(Share { sum, logs });
        part
    }

    fn values(part: &Part, name: &str) -> Vec<f32> {
        part.gradients[name].flatten_all().unwrap().to_vec1().unwrap()
    }

    fn row(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn sums_are_those_of_all_parts_and_no_part_changes() {
        // Two gradients in one memory, one seen through a transposed view, one that others lack.
        let shared = row(&[1.0, 2.0, 3.0, 4.0]).reshape((2, 2)).unwrap();
        let one = [("a", shared.clone()), ("b", shared.t().unwrap()), ("c", shared.clone())];
        let two = [("a", shared.clone()), ("b", shared.clone())];
        let three = [("a", shared.t().unwrap()), ("b", shared.clone()), ("d", shared.clone())];
        let sum = Part::add(part(1.0, &one), part(10.0, &two)).unwrap();
        let sum = Part::add(sum, part(100.0, &three)).unwrap();
        assert_eq!((sum.sum, sum.logs[0].sum, sum.logs[0].weight), (111.0, 111.0, 6.0));
        assert_eq!(values(&sum, "a"), [3.0, 7.0, 8.0, 12.0]);
        assert_eq!(values(&sum, "b"), [3.0, 7.0, 8.0, 12.0]);
        assert_eq!(values(&sum, "c"), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(values(&sum, "d"), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(shared.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
        // Two sums: the second brings names of its own.
        let more = Part::add(part(0.0, &[("e", shared.clone())]), part(0.0, &two)).unwrap();
        let whole = Part::add(sum, more).unwrap();
        assert_eq!(values(&whole, "a"), [4.0, 9.0, 11.0, 16.0]);
        assert_eq!(values(&whole, "e"), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn a_long_sum_is_that_of_its_pieces() {
        let long = |by: f32| -> Tensor {
            let values: Vec<f32> = (0..2 * CHUNK + 3).map(|i| by * (i % 101) as f32).collect();
            row(&values)
        };
        let sum =
            Part::add(part(0.0, &[("a", long(1.0))]), part(0.0, &[("a", long(2.0))])).unwrap();
        let sum = Part::add(sum, part(0.0, &[("a", long(0.5))])).unwrap();
        let want: Vec<f32> = long(3.5).to_vec1().unwrap();
        assert_eq!(values(&sum, "a"), want);
    }
}
