// Float32 matrix products for MLX on Linux: OpenBLAS under the name that MLX looks for, and a kernel of our own for few
// rows, as decoding has them. OpenBLAS copies the matrix into another order before it multiplies, which takes longer
// than one row's product, and how it sums a row follows from the number of rows. This kernel reads the matrix once, as
// it lies, and sums every row alike: a row has the same bits in any company.

extern "C" int scipy_openblas_get_num_threads();
extern "C" void scipy_cblas_sgemm(int, int, int, int, int, int, float, const float*, int, const float*, int, float,
                                  float*, int);

namespace {

constexpr int ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112;
constexpr int FEW = 32;                  // rows; with more, the copy pays
constexpr long WORTH_THREADS = 1 << 16;  // elements of the matrix

// As many sums for two rows at a time as there are registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, WIDTH = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, WIDTH = 4;
#else
constexpr int LANES = 4, WIDTH = 8;
#endif
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));

// c (m, n) = alpha a (m, k) b (k, n) + beta c; b is given by columns where it is transposed.
struct Product {
  int m, n, k;
  float alpha;
  const float* a;
  long lda;
  const float* b;
  long ldb;
  float beta;
  float* c;
  long ldc;

  void write(int row, int column, float sum) const {
    float& out = c[row * ldc + column];
    out = alpha * sum + (beta == 0 ? 0 : beta * out);
  }
};

// R rows of WIDTH columns of a transposed b, each sum in lanes over k. Where b ends earlier its last column is summed
// again, so that all columns are summed by the same instructions.
template <int R>
void by_columns(const Product& p, int row, int column) {
  Lanes sums[R][WIDTH] = {};
  const float* columns[WIDTH];
  for (int j = 0; j < WIDTH; ++j) columns[j] = p.b + (column + j < p.n ? column + j : p.n - 1) * p.ldb;
  int i = 0;
  for (; i + LANES <= p.k; i += LANES)
    for (int j = 0; j < WIDTH; ++j) {
      const Lanes w = *(const Lanes*)(columns[j] + i);
      for (int r = 0; r < R; ++r) sums[r][j] += *(const Lanes*)(p.a + (row + r) * p.lda + i) * w;
    }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < WIDTH && column + j < p.n; ++j) {
      float sum = 0;
      for (int lane = 0; lane < LANES; ++lane) sum += sums[r][j][lane];
      for (int rest = i; rest < p.k; ++rest) sum += p.a[(row + r) * p.lda + rest] * columns[j][rest];
      p.write(row + r, column + j, sum);
    }
}

// R rows of WIDTH * LANES columns of b, a lane for each sum.
template <int R>
void by_rows(const Product& p, int row, int column) {
  Lanes sums[R][WIDTH] = {};
  for (int i = 0; i < p.k; ++i)
    for (int j = 0; j < WIDTH; ++j) {
      const float* at = p.b + i * p.ldb + column + j * LANES;
      __builtin_prefetch(at + 8 * p.ldb);
      for (int r = 0; r < R; ++r) sums[r][j] += p.a[(row + r) * p.lda + i] * *(const Lanes*)at;
    }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < WIDTH * LANES; ++j) p.write(row + r, column + j, sums[r][j / LANES][j % LANES]);
}

template <void (*two)(const Product&, int, int), void (*one)(const Product&, int, int), int STEP>
void run(const Product& p) {
  const int threads = (long)p.n * p.k < WORTH_THREADS ? 1 : scipy_openblas_get_num_threads();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int column = 0; column < p.n; column += STEP) {
    int row = 0;
    for (; row + 2 <= p.m; row += 2) two(p, row, column);
    if (row < p.m) one(p, row, column);
  }
}

}  // namespace

extern "C" void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a,
                            int lda, const float* b, int ldb, float beta, float* c, int ldc) {
  const Product product{m, n, k, alpha, a, lda, b, ldb, beta, c, ldc};
  const bool few = order == ROW_MAJOR && trans_a == NO_TRANS && m <= FEW;
  if (few && trans_b == TRANS)
    run<by_columns<2>, by_columns<1>, WIDTH>(product);
  else if (few && trans_b == NO_TRANS && n % (WIDTH * LANES) == 0)
    run<by_rows<2>, by_rows<1>, WIDTH * LANES>(product);
  else
    scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
