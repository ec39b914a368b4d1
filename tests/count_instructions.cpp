// What test_instructions.py counts the instructions of, on images of bytes: an epoch of one model; or,
// with an argument, predictions for rows that are laid out by "rows" or by "columns", or that are
// "strided", with other values between theirs.

#include "../skmax/kernels/core.cpp"

#include <vector>

int main(int n_arguments, char** arguments) {
    const int64_t n = 2048, d = 784, k = 10, batch = 256, stride = 784 + 16;
    std::vector<uint8_t> X(n * d);
    std::vector<int64_t> rows(n), labels(n);
    uint32_t random = 1;
    auto next = [&] { return random = random * 1664525u + 1013904223u, random >> 24; };
    for (auto& value : X) value = next();
    for (int64_t i = 0; i < n; i++) rows[i] = i * 1021 % n, labels[i] = next() % k;  // any order

    auto aligned = [](int64_t size, float value) {
        float* values = (float*)aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64);
        for (int64_t i = 0; i < size; i++) values[i] = value;
        return values;
    };
    Job job = {};
    job.n = n, job.d = d, job.k = k, job.m = 1, job.stride = stride, job.batch = batch;
    job.X = (const char*)X.data(), job.row_bytes = d, job.value_bytes = 1;
    job.x_rows = job.t_rows = rows.data(), job.labels = labels.data();
    job.coef = aligned(k * stride, 0), job.coef_velocity = aligned(k * stride, 0);
    job.intercept = aligned(k, 0), job.intercept_velocity = aligned(k, 0);
    job.mean = aligned(stride, 0), job.inverse_scale = aligned(stride, 1e-2f);
    job.rates = aligned(n / batch, 1e-2f), job.momentum = aligned(1, 0.9f);
    job.l2 = aligned(1, 1e-5f), job.l1 = aligned(1, 0), job.fit_intercept = 1;
    double loss = 0, correct = 0;
    int64_t column = 0;
    job.loss = &loss, job.correct = &correct, job.columns = &column;

    if (n_arguments > 1) {
        const int64_t few = 256, step = 80;
        std::vector<uint8_t> wide(few * d * step, 1);
        job.n = few, job.X = (const char*)wide.data();
        if (!strcmp(arguments[1], "columns")) job.row_bytes = 1, job.value_bytes = few;
        if (!strcmp(arguments[1], "strided")) job.row_bytes = step * d, job.value_bytes = step;
        job.x_rows = job.t_rows = nullptr, job.k_coef = k, job.method = 2;
        job.out = aligned(few * k, 0), job.all_finite = 1;
        return skmax_predict_avx2(&job) || !job.all_finite;
    }
    int failed = skmax_epoch_avx2(&job);
    return failed || !(loss > 0 && loss < 10. * n);
}
