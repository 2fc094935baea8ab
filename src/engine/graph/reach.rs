//! Which elements of an image each window reads, for any number of spatial axes.

use super::shapes::Windows;

/// For each window along each axis the taps that lie inside of the image.
#[derive(Clone, Debug)]
pub struct Reach {
    axes: Vec<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    /// Elements of the axis.
    length: usize,
    /// Distance between taps.
    dilation: usize,
    /// For each window its first tap inside, and the element which that is.
    first: Vec<(usize, usize)>,
    /// For each window how many taps are inside, and how many stand on the axis or its pads.
    counts: Vec<(usize, usize)>,
}

impl Reach {
    /// What `windows`, made for an image of these lengths, read of it.
    pub fn new(windows: &Windows, spatial: &[usize]) -> Reach {
        let axes = spatial.iter().enumerate().map(|(axis, &length)| {
            let (taps, dilation, begin) =
                (windows.kernel[axis], windows.dilations[axis], windows.begin[axis]);
            let padded = begin + length + windows.end.get(axis).copied().unwrap_or(0);
            let window = |w: usize| {
                let start = w * windows.strides[axis];
                // How many taps stand before this place.
                let before = |end: usize| end.saturating_sub(start).div_ceil(dilation).min(taps);
                let (first, after) = (before(begin), before(begin + length));
                let element = (start + first * dilation).saturating_sub(begin);
                ((first, element), (after - first, before(padded)))
            };
            let (first, counts) = (0..windows.out[axis]).map(window).unzip();
            Line { length, dilation, first, counts }
        });
        Reach { axes: axes.collect() }
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.axes.iter().map(|line| line.first.len()).product()
    }

    /// The index of a window along each axis.
    pub fn index(&self, mut window: usize) -> Vec<usize> {
        let mut index = vec![0; self.axes.len()];
        for (i, line) in index.iter_mut().zip(&self.axes).rev() {
            *i = window % line.first.len();
            window /= line.first.len();
        }
        index
    }

    /// Taps of a window inside of the image, and those inside of it or of its pads.
    pub fn counts(&self, index: &[usize]) -> (usize, usize) {
        let pairs = self.axes.iter().zip(index).map(|(line, &w)| line.counts[w]);
        pairs.fold((1, 1), |(inside, padded), (i, p)| (inside * i, padded * p))
    }

    /// Calls `visit` with each tap of a window inside of the image, in order: its number along each axis and the
    /// element that it reads.
    #[inline]
    pub fn for_each(&self, index: &[usize], kernel: &[usize], mut visit: impl FnMut(usize, usize)) {
        self.axis(0, index, kernel, (0, 0), &mut visit);
    }

    fn axis(
        &self,
        axis: usize,
        index: &[usize],
        kernel: &[usize],
        (tap, element): (usize, usize),
        visit: &mut impl FnMut(usize, usize),
    ) {
        let Some(line) = self.axes.get(axis) else { return visit(tap, element) };
        let ((first, start), (count, _)) = (line.first[index[axis]], line.counts[index[axis]]);
        let (tap, element) = (tap * kernel[axis] + first, element * line.length + start);
        for i in 0..count {
            let at = (tap + i, element + i * line.dilation);
            match axis + 1 == self.axes.len() {
                true => visit(at.0, at.1),
                false => self.axis(axis + 1, index, kernel, at, visit),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::op::Sliding;
    use super::super::shapes::windows;
    use super::*;

    #[test]
    fn taps_outside_are_left_out() {
        let sliding = Sliding { pads: vec![1, 0, 1, 1], dilations: vec![1, 2], ..Sliding::default() };
        let (spatial, kernel) = ([2, 3], [2, 2]);
        let windows = windows(&sliding, &spatial, &kernel).unwrap();
        let reach = Reach::new(&windows, &spatial);
        assert_eq!(reach.windows(), 6);
        let read = |window: usize| {
            let mut taps = Vec::new();
            let index = reach.index(window);
            reach.for_each(&index, &kernel, |tap, element| taps.push((tap, element)));
            (taps, reach.counts(&index))
        };
        assert_eq!(read(0), (vec![(2, 0), (3, 2)], (2, 4)));
        assert_eq!(read(1), (vec![(2, 1)], (1, 4)));
        assert_eq!(read(2), (vec![(0, 0), (1, 2), (2, 3), (3, 5)], (4, 4)));
    }
}
