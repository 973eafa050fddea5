//! Linear maps that read the same input, each with its low-rank additions: forward and backward.

use candle_core::{CpuStorage, Layout, Storage, StorageRef, Tensor};
use luthier_core::{Error, Found, Gradient, LowRank, Result};
use luthier_kernels::{
    gemm::{Output, Term, View, product},
    num::{Numbers, Precision},
    pool::{Buffer, Kept, read},
};

use crate::weight::{Linear, Weight};

/// A tensor's numbers, borrowed for a while.
pub(super) struct Read<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Read<'a> {
    pub(super) fn new(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) || !layout.is_contiguous() {
            return Err(Error::failed("tensor", "expected contiguous f32 on the CPU"));
        }
        Ok(Read { storage, layout })
    }
}

impl std::ops::Deref for Read<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        let Storage::Cpu(CpuStorage::F32(data)) = &*self.storage else {
            unreachable!("checked when it was made")
        };
        let from = self.layout.start_offset();
        &data[from..from + self.layout.shape().elem_count()]
    }
}

/// A linear map and what hooks add to it.
pub(super) struct Branch<'a> {
    pub(super) lin: &'a Linear,
    pub(super) low: &'a [LowRank],
}

impl Branch<'_> {
    /// Whether anything here learns.
    pub(super) fn learns(&self) -> bool {
        let bias = self.lin.bias.as_ref().is_some_and(Tensor::is_variable);
        let low = self.low.iter().any(|low| low.a_ri.is_variable() || low.b_or.is_variable());
        low || bias || self.lin.weight.learned().is_some()
    }
}

/// The numbers of a branch while it is computed.
struct Operands<'a> {
    w_oi: Matrix<'a>,
    low: Vec<Factors<'a>>,
    o: usize,
    /// Of all additions together.
    r: usize,
}

/// A low-rank addition and its numbers.
struct Factors<'a> {
    of: &'a LowRank,
    a_ri: Read<'a>,
    b_or: Read<'a>,
    r: usize,
}

impl<'a> Factors<'a> {
    fn new(of: &'a LowRank) -> Result<Self> {
        let r = of.a_ri.dims()[0];
        Ok(Factors { of, a_ri: Read::new(&of.a_ri)?, b_or: Read::new(&of.b_or)?, r })
    }

    fn b_or(&self) -> View<'_> {
        View::rows(&*self.b_or, self.r)
    }
}

enum Matrix<'a> {
    Frozen(View<'a>),
    Dense(Read<'a>, usize),
}

impl<'a> Operands<'a> {
    fn new(branch: &'a Branch) -> Result<Self> {
        let (w_oi, o) = match &branch.lin.weight {
            Weight::Frozen(w) => (Matrix::Frozen(w.view()), w.dims().0),
            Weight::Dense(w, _) => {
                let (o, i) = w.dims2()?;
                (Matrix::Dense(Read::new(w)?, i), o)
            }
        };
        let low = branch.low.iter().map(Factors::new).collect::<Result<Vec<_>>>()?;
        let r = low.iter().map(|low| low.r).sum();
        Ok(Operands { w_oi, low, o, r })
    }

    fn w_oi(&self) -> View<'_> {
        match &self.w_oi {
            Matrix::Frozen(view) => *view,
            Matrix::Dense(w, i) => View::rows(&**w, *i),
        }
    }
}

/// The input of a fan in the backward pass.
pub(super) enum Input<'a> {
    /// It was kept.
    Kept(&'a Kept),
    /// It is computed again, where its numbers are needed.
    Again(&'a dyn Fn() -> Kept),
}

/// Branches that read one input of `n` rows and `i` columns.
pub(super) struct Fan<'a> {
    pub(super) branches: &'a [Branch<'a>],
    pub(super) precision: Precision,
    pub(super) n: usize,
    pub(super) i: usize,
}

impl Fan<'_> {
    /// Whether anything here learns.
    pub(super) fn learns(&self) -> bool {
        self.branches.iter().any(Branch::learns)
    }

    fn operands(&self) -> Result<Vec<Operands<'_>>> {
        self.branches.iter().map(Operands::new).collect()
    }

    /// Sets or adds each branch's output. Returns the narrow products `scale · x Aᵀ` of all
    /// additions side by side.
    pub(super) fn forward(
        &self,
        x_ni: Numbers,
        output: Output,
        outs: &mut [&mut [f32]],
    ) -> Result<Option<Kept>> {
        let Fan { n, i, precision, .. } = *self;
        let operands = self.operands()?;
        let x = View::rows(x_ni, i);
        let t = self.narrow(x, &operands);
        let r_all: usize = operands.iter().map(|p| p.r).sum();
        let mut column = 0;
        for ((branch, p), out) in self.branches.iter().zip(&operands).zip(outs) {
            let mut terms = vec![Term { a: x, b: p.w_oi().t(), k: i }];
            for low in &p.low {
                if let Some(t) = &t {
                    let t = View::rows(t.numbers(), r_all).from(0, column);
                    terms.push(Term { a: t, b: low.b_or().t(), k: low.r });
                }
                column += low.r;
            }
            product(precision, n, p.o, &terms, output, out, p.o);
            if let Some(bias) = &branch.lin.bias {
                let bias = Read::new(bias)?;
                for row in out.chunks_exact_mut(p.o) {
                    row.iter_mut().zip(&*bias).for_each(|(y, b)| *y += b);
                }
            }
        }
        Ok(t)
    }

    fn narrow(&self, x: View, operands: &[Operands]) -> Option<Kept> {
        let Fan { n, i, precision, .. } = *self;
        let r_all: usize = operands.iter().map(|p| p.r).sum();
        if r_all == 0 {
            return None;
        }
        // All first factors under each other and scaled, for one product.
        let mut a = Buffer::new(r_all * i);
        let mut rest = &mut a[..];
        for low in operands.iter().flat_map(|p| &p.low) {
            let to;
            (to, rest) = rest.split_at_mut(low.r * i);
            to.iter_mut().zip(&*low.a_ri).for_each(|(to, a)| *to = low.of.scale * a);
        }
        let mut t = Buffer::new(n * r_all);
        let term = Term { a: x, b: View::rows(&a, i).t(), k: i };
        product(precision, n, r_all, &[term], Output::Set, &mut t, r_all);
        Some(Kept::take(precision, t))
    }

    /// From the outputs' gradients to those of everything learned here and, if asked for, of the
    /// input.
    pub(super) fn backward(
        &self,
        x: Input,
        t: Option<&Kept>,
        dys: &[&Kept],
        dx: Option<&mut [f32]>,
        found: &mut Found,
    ) -> Result<()> {
        let Fan { n, i, precision, .. } = *self;
        let operands = self.operands()?;
        let r_all: usize = operands.iter().map(|p| p.r).sum();
        let mut dt = Buffer::new(n * r_all);
        let mut column = 0;
        for (p, dy) in operands.iter().zip(dys) {
            for low in &p.low {
                let term = Term { a: View::rows(dy.numbers(), p.o), b: low.b_or(), k: p.o };
                product(precision, n, low.r, &[term], Output::Set, &mut dt[column..], r_all);
                for row in dt.chunks_exact_mut(r_all) {
                    row[column..column + low.r].iter_mut().for_each(|dt| *dt *= low.of.scale);
                }
                column += low.r;
            }
        }
        let dt = (r_all > 0).then(|| Kept::take(precision, dt));
        if let Some(dx) = dx {
            let mut terms: Vec<Term> = Vec::with_capacity(2 * operands.len());
            let mut column = 0;
            for (p, dy) in operands.iter().zip(dys) {
                terms.push(Term { a: View::rows(dy.numbers(), p.o), b: p.w_oi(), k: p.o });
                for low in &p.low {
                    if let Some(dt) = &dt {
                        let dt = View::rows(dt.numbers(), r_all).from(0, column);
                        terms.push(Term { a: dt, b: View::rows(&*low.a_ri, i), k: low.r });
                    }
                    column += low.r;
                }
            }
            product(precision, n, i, &terms, Output::Set, dx, i);
        }
        let weights = self.branches.iter().any(|b| b.lin.weight.learned().is_some());
        let mut low = operands.iter().flat_map(|p| &p.low).map(|low| low.of);
        let firsts = low.clone().any(|low| low.a_ri.is_variable());
        let seconds = low.any(|low| low.b_or.is_variable());
        let again;
        let x = match x {
            _ if !firsts && !weights => None,
            Input::Kept(x) => Some(x),
            Input::Again(x) => {
                again = x();
                Some(&again)
            }
        };
        if let Some(x) = x.filter(|_| firsts)
            && let Some(dt) = &dt
        {
            self.first_factors(x, dt, &operands, found)?;
        }
        if let Some(t) = t.filter(|_| seconds) {
            self.second_factors(t, dys, &operands, found)?;
        }
        for ((branch, p), dy) in self.branches.iter().zip(&operands).zip(dys) {
            if let (Some(w), Some(x)) = (branch.lin.weight.learned(), x) {
                let mut dw = Buffer::new(p.o * i);
                let dy = View::rows(dy.numbers(), p.o).t();
                let term = Term { a: dy, b: View::rows(x.numbers(), i), k: n };
                product(precision, p.o, i, &[term], Output::Set, &mut dw, i);
                let add = move |sum: &mut [f32]| {
                    sum.iter_mut().zip(&dw[..]).for_each(|(sum, dw)| *sum += dw);
                    Ok(())
                };
                found(w, Gradient::Into(Box::new(add)))?;
            }
            if let Some(bias) = branch.lin.bias.as_ref().filter(|b| b.is_variable()) {
                let mut db = vec![0f32; p.o];
                for token in 0..n {
                    read(dy.numbers(), token * p.o..(token + 1) * p.o, |dy| {
                        db.iter_mut().zip(dy).for_each(|(db, dy)| *db += dy);
                    });
                }
                found(bias, Gradient::Dense(Tensor::from_vec(db, p.o, bias.device())?))?;
            }
        }
        Ok(())
    }

    /// Gradients of the low-rank additions' first factors, all of them in one product.
    fn first_factors(
        &self,
        x: &Kept,
        dt: &Kept,
        operands: &[Operands],
        found: &mut Found,
    ) -> Result<()> {
        let Fan { n, i, precision, .. } = *self;
        let r_all: usize = operands.iter().map(|p| p.r).sum();
        let mut da = Buffer::new(r_all * i);
        let (dt, x) = (View::rows(dt.numbers(), r_all).t(), View::rows(x.numbers(), i));
        product(precision, r_all, i, &[Term { a: dt, b: x, k: n }], Output::Set, &mut da, i);
        let mut column = 0;
        for low in operands.iter().flat_map(|p| &p.low) {
            if low.of.a_ri.is_variable() {
                let part = da[column * i..(column + low.r) * i].to_vec();
                let da = Tensor::from_vec(part, (low.r, i), low.of.a_ri.device())?;
                found(&low.of.a_ri, Gradient::Dense(da))?;
            }
            column += low.r;
        }
        Ok(())
    }

    /// Gradients of the low-rank additions' second factors.
    fn second_factors(
        &self,
        t: &Kept,
        dys: &[&Kept],
        operands: &[Operands],
        found: &mut Found,
    ) -> Result<()> {
        let Fan { n, precision, .. } = *self;
        let r_all: usize = operands.iter().map(|p| p.r).sum();
        let mut column = 0;
        for (p, dy) in operands.iter().zip(dys) {
            for low in &p.low {
                let at = column;
                column += low.r;
                if !low.of.b_or.is_variable() {
                    continue;
                }
                // The other way round is faster: the few columns become rows, and dy is read in
                // order.
                let mut turned = Buffer::new(low.r * p.o);
                let t = View::rows(t.numbers(), r_all).from(0, at).t();
                let term = Term { a: t, b: View::rows(dy.numbers(), p.o), k: n };
                product(precision, low.r, p.o, &[term], Output::Set, &mut turned, p.o);
                let mut db = vec![0f32; p.o * low.r];
                for (r, row) in turned.chunks_exact(p.o).enumerate() {
                    db.iter_mut().skip(r).step_by(low.r).zip(row).for_each(|(db, x)| *db = *x);
                }
                let db = Tensor::from_vec(db, (p.o, low.r), low.of.b_or.device())?;
                found(&low.of.b_or, Gradient::Dense(db))?;
            }
        }
        Ok(())
    }
}
