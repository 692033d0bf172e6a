import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

/** Fetches each URL with both of Java's clients and says what came of it, one line each. */
public class Fetch {
    public static void main(String[] urls) {
        HttpClient client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();
        for (String url : urls) {
            say("HttpURLConnection", url, () -> {
                HttpURLConnection c = (HttpURLConnection) URI.create(url).toURL().openConnection();
                c.setConnectTimeout(10000);
                c.setReadTimeout(10000);
                return "HTTP/1.1 " + c.getResponseCode();
            });
            say("HttpClient", url, () -> {
                HttpRequest request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(10)).build();
                HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
                return response.version() + " " + response.statusCode();
            });
        }
    }

    interface Step {
        String run() throws Exception;
    }

    static void say(String how, String url, Step step) {
        String result;
        try {
            result = step.run();
        } catch (Exception e) {
            result = "failed: " + e;
        }
        System.out.println(how + " " + url + " " + result);
    }
}
