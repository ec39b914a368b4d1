// Coordinate descent for a quadratic function plus L1, of few variables: part of core.cpp.

// What is asked for. `skmax/kernels/coordinate_descent.py` has the same fields in the same order.
struct Quadratic {
    int64_t q;
    const double* matrix;      // (q, q), symmetric, its diagonal positive
    double *x, *gradient;      // (q,), which are updated
    const double* thresholds;  // (q,), by which L1 counts
    double enough;             // see `left`
    int64_t most;              // sweeps
};

namespace SKMAX_SET {
namespace {

struct CoordinateDescent {
    const Quadratic& of;

    // Each variable to its best, the others being what they are; of those that are zero, or not.
    bool sweep(bool all) {
        bool moved = false;
        for (int64_t j = 0; j < of.q; j++) {
            double old = of.x[j], h = of.matrix[j * of.q + j];
            if (!all && old == 0) continue;
            double z = h * old - of.gradient[j], t = of.thresholds[j];
            double best = z > t ? (z - t) / h : z < -t ? (z + t) / h : 0, step = best - old;
            if (step == 0) continue;
            of.x[j] = best, moved = true;
            const double* row = of.matrix + j * of.q;
            for (int64_t i = 0; i < of.q; i++) of.gradient[i] += step * row[i];
        }
        return moved;
    }

    // The squared length of the least subgradient, over the diagonal.
    double left(bool all) const {
        double sum = 0;
        for (int64_t j = 0; j < of.q; j++) {
            double g = of.gradient[j], t = of.thresholds[j];
            if (of.x[j] == 0) {
                if (!all) continue;
                g = g > t ? g - t : g < -t ? g + t : 0;
            } else
                g += of.x[j] > 0 ? t : -t;
            sum += g * g / of.matrix[j * of.q + j];
        }
        return sum;
    }

    // Whether so little is left: sweeps over what is not zero, until a look at all finds no more.
    int descend() {
        bool all = true;
        for (int64_t i = 0; i < of.most; i++) {
            bool moved = sweep(all);
            if (left(true) <= of.enough) return 0;
            all = !all && (!moved || left(false) <= of.enough);
        }
        return 1;
    }
};

}  // namespace
}  // namespace SKMAX_SET

SKMAX_EXPORT(coordinate_descent)(const Quadratic* quadratic) {
    return SKMAX_SET::CoordinateDescent{*quadratic}.descend();
}
